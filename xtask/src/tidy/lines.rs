//! Rules that one file answers by its name and lines.

use super::{Fault, Source};

/// Longest `main.rs`: a program parses, calls its library, prints the error, picks the exit code.
const MAIN_LINES: usize = 80;
/// Names that say nothing about what is inside.
const BANNED_NAMES: [&str; 4] = ["common", "helpers", "types", "utils"];
/// Crates that may speak SQL, and the imports that mean it.
const SQL_CRATES: [&str; 2] = ["crates/db/", "crates/migration/"];
const SQL_IMPORTS: [&str; 4] = ["sea_orm", "sea_orm_migration", "sqlx", "rusqlite"];
/// Crates that may lift the ban on unsafe code, for their `mod sys` alone.
const UNSAFE_CRATES: [&str; 2] = ["crates/agent/", "crates/runtime/"];
const UNSAFE_MODULE: &str = "sys";
/// The facade's error, whose variants are fixed by the interface it keeps.
const PUBLIC_ERROR: &str = "crates/microsandbox/src/error.rs";

pub(super) fn check(source: &Source) -> Vec<Fault> {
    if !source.is_rust() {
        return Vec::new();
    }
    let rules = [header, name, banners, error_variants, sql, unsafe_code, main_length];
    rules.iter().flat_map(|rule| rule(source)).collect()
}

fn header(source: &Source) -> Vec<Fault> {
    if source.text.starts_with("//!") {
        return Vec::new();
    }
    vec![source.fault(1, "a file opens with `//!`: say what it is for and what it does not do")]
}

fn name(source: &Source) -> Vec<Fault> {
    let parts = source.path.trim_end_matches(".rs").split('/');
    parts
        .filter(|part| BANNED_NAMES.contains(part))
        .map(|part| {
            let what = format!("no module is called `{part}`: name it after what it holds");
            Fault { path: source.path.clone(), line: None, what }
        })
        .collect()
}

/// A comment that is mostly a ruler.
fn banners(source: &Source) -> Vec<Fault> {
    lines(source)
        .filter(|(_, line)| {
            let rule = |c| matches!(c, '-' | '=' | '*' | '#' | '~' | '─' | '═' | '/');
            line.strip_prefix("//").is_some_and(|comment| {
                let comment = comment.trim();
                comment.chars().filter(|&c| rule(c)).count() >= 4
                    && (comment.starts_with(rule) && comment.ends_with(rule))
            })
        })
        .map(|(number, _)| {
            source.fault(number, "no banner comments: a file that needs headings needs modules")
        })
        .collect()
}

fn error_variants(source: &Source) -> Vec<Fault> {
    if source.name() != "error.rs" || source.path == PUBLIC_ERROR {
        return Vec::new();
    }
    let bad = [
        ("(String)", "an error carries the data to act on, not one String: name its fields"),
        ("#[from] std::io::Error", "an I/O error needs the operation and the path: use #[source]"),
        ("#[from] io::Error", "an I/O error needs the operation and the path: use #[source]"),
    ];
    found(source, &bad)
}

fn sql(source: &Source) -> Vec<Fault> {
    if SQL_CRATES.iter().any(|folder| source.path.starts_with(folder)) {
        return Vec::new();
    }
    lines(source)
        .filter(|(_, line)| {
            let root = line.trim_start_matches("pub ").strip_prefix("use ");
            root.and_then(|path| path.split([':', ';', ' ']).next())
                .is_some_and(|root| SQL_IMPORTS.contains(&root))
        })
        .map(|(number, _)| {
            source.fault(number, "SQL stays in crates/db and crates/migration: ask db for it")
        })
        .collect()
}

fn unsafe_code(source: &Source) -> Vec<Fault> {
    let may = UNSAFE_CRATES.iter().any(|folder| source.path.starts_with(folder))
        && source.path.trim_end_matches(".rs").split('/').any(|part| part == UNSAFE_MODULE);
    if may {
        return Vec::new();
    }
    lines(source)
        .filter(|(_, line)| code(line).any(|word| word == "unsafe"))
        .map(|(number, _)| {
            source.fault(number, "unsafe code lives in `mod sys` of agent and runtime: move it")
        })
        .collect()
}

/// Words of a line that are neither comment nor text in quotes.
fn code(line: &str) -> impl Iterator<Item = &str> {
    let line = line.split("//").next().unwrap_or_default();
    let outside_quotes = line.split('"').step_by(2);
    outside_quotes.flat_map(|part| part.split(|c: char| !(c.is_alphanumeric() || c == '_')))
}

fn main_length(source: &Source) -> Vec<Fault> {
    let length = source.text.lines().count();
    if !source.path.ends_with("src/main.rs") || length <= MAIN_LINES {
        return Vec::new();
    }
    let what =
        format!("main.rs has {length} lines, at most {MAIN_LINES}: move work to the library");
    vec![source.fault(length, what)]
}

fn found(source: &Source, bad: &[(&str, &str)]) -> Vec<Fault> {
    let hit = |line: &str| bad.iter().find(|(text, _)| line.contains(text)).map(|(_, what)| *what);
    lines(source).filter_map(|(number, line)| Some(source.fault(number, hit(line)?))).collect()
}

/// Trimmed lines with their numbers.
fn lines(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    source.text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    /// Lines at fault; a file at fault as a whole counts as line 0.
    fn at_fault(path: &str, text: &str) -> Vec<usize> {
        check(&source(path, text)).iter().map(|fault| fault.line.unwrap_or(0)).collect()
    }

    #[test]
    fn clean_file_has_no_fault() {
        let text = "//! What for.\n\nuse std::io;\n\n// Why.\nfn a() -> u8 {\n    4 / 2\n}\n";
        assert_eq!(at_fault("crates/image/src/layer.rs", text), [0; 0]);
    }

    #[test]
    fn file_without_header_is_at_fault() {
        assert_eq!(at_fault("a.rs", "fn a() {}\n"), [1]);
        assert_eq!(at_fault("README.md", "# Title\n"), [0; 0]);
    }

    #[test]
    fn name_that_says_nothing_is_at_fault() {
        for path in ["crates/a/src/utils.rs", "crates/a/src/common/x.rs", "tests/it/helpers.rs"] {
            assert_eq!(at_fault(path, "//! A.\n"), [0], "{path}");
        }
        assert_eq!(at_fault("crates/a/src/filetypes.rs", "//! A.\n"), [0; 0]);
    }

    #[test]
    fn banner_is_at_fault_and_a_drawing_in_docs_is_not() {
        for banner in ["// -------", "//=== Parsing ===", "    // ---- part ----", "////////"] {
            assert_eq!(at_fault("a.rs", &format!("//! A.\n{banner}\n")), [2], "{banner}");
        }
        for line in ["// a -> b --> c", "//! text -- more", "//! a ──> b", "// - item"] {
            assert_eq!(at_fault("a.rs", &format!("//! A.\n{line}\n")), [0; 0], "{line}");
        }
    }

    #[test]
    fn error_variant_without_data_is_at_fault() {
        for line in ["Other(String),", "Io(#[from] std::io::Error),", "#[from] io::Error"] {
            let text = format!("//! A.\n{line}\n");
            assert_eq!(at_fault("crates/a/src/error.rs", &text), [2], "{line}");
            assert_eq!(at_fault("crates/a/src/other.rs", &text), [0; 0], "{line}");
            assert_eq!(at_fault(PUBLIC_ERROR, &text), [0; 0], "{line}");
        }
    }

    #[test]
    fn sql_outside_its_crates_is_at_fault() {
        for line in
            ["use sea_orm::Database;", "pub use sqlx::query;", "use sea_orm_migration as m;"]
        {
            let text = format!("//! A.\n{line}\n");
            assert_eq!(at_fault("crates/microsandbox/src/a.rs", &text), [2], "{line}");
            assert_eq!(at_fault("crates/db/src/a.rs", &text), [0; 0], "{line}");
        }
    }

    #[test]
    fn unsafe_outside_sys_is_at_fault() {
        let text = "//! A.\nlet a = unsafe { b() };\n// unsafe is a word here\na(\"unsafe\");\n";
        assert_eq!(at_fault("crates/image/src/sys.rs", text), [2]);
        assert_eq!(at_fault("crates/runtime/src/relay.rs", text), [2]);
        assert_eq!(at_fault("crates/runtime/src/sys.rs", text), [0; 0]);
        assert_eq!(at_fault("crates/agent/src/sys/mount.rs", text), [0; 0]);
        assert_eq!(at_fault("a.rs", "//! A.\n#![forbid(unsafe_code)]\n"), [0; 0]);
    }

    #[test]
    fn long_main_is_at_fault() {
        let text = |lines| format!("//! A.\n{}", "\n".repeat(lines - 1));
        assert_eq!(at_fault("src/main.rs", &text(MAIN_LINES)), [0; 0]);
        assert_eq!(at_fault("src/main.rs", &text(MAIN_LINES + 1)), [MAIN_LINES + 1]);
        assert_eq!(at_fault("tests/it/main.rs", &text(MAIN_LINES + 1)), [0; 0]);
    }
}
