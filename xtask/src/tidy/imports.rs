//! Imports at the top of a file: std, then other crates, then ours, a blank line between groups.
//!
//! rustfmt sorts within a group, but groups itself only on nightly.

use std::{cmp::Ordering, collections::BTreeSet};

use super::{Fault, Source};

/// A group of imports; the order of the variants is the order in a file.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Group {
    Standard,
    External,
    Crate,
}

pub(super) fn check(source: &Source) -> Vec<Fault> {
    if !source.is_rust() {
        return Vec::new();
    }
    let modules = modules(&source.text);
    let mut faults = Vec::new();
    let mut last = None;
    let mut between = Between::default();
    for (index, line) in source.text.lines().enumerate() {
        let Some(root) = import_root(line) else {
            between.note(line);
            continue;
        };
        let group = group(root, &modules);
        let what = last.and_then(|last| match group.cmp(&last) {
            Ordering::Less => Some("imports come as std, other crates, ours: reorder"),
            Ordering::Equal if between.blank && !between.other => {
                Some("one group of imports has no blank line within: remove it")
            }
            Ordering::Greater if !between.blank => {
                Some("groups of imports are parted by a blank line: add one")
            }
            _ => None,
        });
        faults.extend(what.map(|what| source.fault(index + 1, what)));
        last = Some(group);
        between = Between::default();
    }
    faults
}

/// What was seen since the last import began.
#[derive(Default)]
struct Between {
    blank: bool,
    /// Something that is no import, such as a re-export.
    other: bool,
}

impl Between {
    fn note(&mut self, line: &str) {
        self.blank |= line.is_empty();
        // The rest of an import of several lines is indented, or closes it.
        self.other |= !(line.is_empty() || line.starts_with("    ") || line == "};");
    }
}

/// First name of an import that starts at the margin; re-exports are part of an API, not imports.
fn import_root(line: &str) -> Option<&str> {
    line.strip_prefix("use ")?.trim_start_matches("::").split([':', ';', ' ', '{']).next()
}

fn group(root: &str, modules: &BTreeSet<&str>) -> Group {
    match root {
        "std" | "core" | "alloc" => Group::Standard,
        "crate" | "self" | "super" => Group::Crate,
        root if modules.contains(root) => Group::Crate,
        _ => Group::External,
    }
}

/// Modules declared in the file: their names start imports of our own things.
fn modules(text: &str) -> BTreeSet<&str> {
    let declarations = text.lines().filter_map(|line| {
        let line = line.trim_start_matches("pub ").trim_start_matches("pub(crate) ");
        line.strip_prefix("mod ")
    });
    declarations.filter_map(|name| name.split([';', ' ']).next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn at_fault(text: &str) -> Vec<usize> {
        let faults = check(&source("a.rs", text));
        faults.iter().filter_map(|fault| fault.line).collect()
    }

    #[test]
    fn three_groups_in_order_pass() {
        let text = "use std::{\n    io,\n};\n\nuse anyhow::Result;\nuse serde::Serialize;\n\n\
                    use crate::a;\nuse super::b;\n";
        assert_eq!(at_fault(text), [0; 0]);
        assert_eq!(at_fault("mod part;\n\nuse std::io;\n\nuse part::Thing;\n"), [0; 0]);
    }

    #[test]
    fn re_export_between_imports_belongs_to_their_group() {
        let text = "use serde::Serialize;\n\npub use self::b::B;\nuse self::b::C;\nuse crate::a;\n";
        assert_eq!(at_fault(text), [0; 0]);
    }

    #[test]
    fn wrong_order_is_at_fault() {
        assert_eq!(at_fault("use anyhow::Result;\n\nuse std::io;\n"), [3]);
        assert_eq!(at_fault("use crate::a;\n\nuse anyhow::Result;\n"), [3]);
    }

    #[test]
    fn groups_without_blank_line_between_are_at_fault() {
        assert_eq!(at_fault("use std::io;\nuse anyhow::Result;\n"), [2]);
    }

    #[test]
    fn blank_line_within_a_group_is_at_fault() {
        assert_eq!(at_fault("use std::io;\n\nuse std::fs;\n"), [3]);
    }
}
