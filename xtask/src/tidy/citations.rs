//! Paths of this repository that comments and documents cite: they must exist.

use super::{Fault, Source};

/// What a cited path of this repository starts with.
const ROOTS: [&str; 5] = [".ci/", "crates/", "docs/", "guest/kernel", "xtask/"];

/// Checks one file; `exists` answers for a path from the root.
pub(super) fn check(source: &Source, exists: &dyn Fn(&str) -> bool) -> Vec<Fault> {
    let lines = source.text.lines().enumerate();
    lines
        .filter(|(_, line)| source.is_markdown() || line.trim_start().starts_with("//"))
        .flat_map(|(index, line)| cited(line).map(move |path| (index + 1, path)))
        .filter(|(_, path)| !exists(path))
        .map(|(number, path)| {
            source.fault(number, format!("cites {path}, which does not exist: correct the path"))
        })
        .collect()
}

/// Paths within a line; one with a placeholder or a pattern in it names no file.
fn cited(line: &str) -> impl Iterator<Item = &str> {
    let in_path = |c: char| c.is_alphanumeric() || "/._-<>*{},$".contains(c);
    line.split(move |c: char| !in_path(c))
        .map(|word| word.trim_start_matches("./").trim_end_matches(['.', ',', '-', '/']))
        .filter(|word| ROOTS.iter().any(|root| word.starts_with(root)))
        .filter(|word| !word.contains(['<', '>', '*', '{', ',', '$']) && !word.contains("NNNN"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn missing(path: &str, text: &str) -> usize {
        let exists = |path: &str| path == "crates/image" || path == "docs/formats/protocol.md";
        check(&source(path, text), &exists).len()
    }

    #[test]
    fn path_that_exists_passes() {
        assert_eq!(missing("a.rs", "//! See docs/formats/protocol.md, and `crates/image/`.\n"), 0);
        assert_eq!(missing("a.md", "[page](./docs/formats/protocol.md).\n"), 0);
    }

    #[test]
    fn path_that_does_not_exist_is_at_fault() {
        assert_eq!(missing("a.rs", "    // as docs/formats/erofs.md says\n"), 1);
        assert_eq!(missing("a.md", "see crates/gone/src/lib.rs and docs/gone.md\n"), 2);
    }

    #[test]
    fn code_and_patterns_are_no_citations() {
        assert_eq!(missing("a.rs", "let path = \"docs/gone.md\";\n"), 0);
        assert_eq!(
            missing("a.md", "crates/<name>/src, docs/adr/NNNN-*.md, https://x/crates/y\n"),
            0
        );
    }
}
