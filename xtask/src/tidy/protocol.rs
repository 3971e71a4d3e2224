//! The page that describes the wire carries a hash of the code that speaks it.
//!
//! Whoever changes the code is so made to look at the page; the message has the new line.

use super::{Fault, Source};
use crate::digest;

const PAGE: &str = "docs/formats/protocol.md";
const FOLDER: &str = "crates/protocol/src/";
/// How the line of the page starts.
const LINE: &str = "Sources: sha256 ";

pub(super) fn check(sources: &[Source]) -> Vec<Fault> {
    let mut code: Vec<&Source> =
        sources.iter().filter(|source| source.path.starts_with(FOLDER)).collect();
    if code.is_empty() {
        return Vec::new();
    }
    code.sort_by(|a, b| a.path.cmp(&b.path));
    let parts: Vec<&str> =
        code.iter().flat_map(|source| [source.path.as_str(), source.text.as_str()]).collect();
    let expected = format!("{LINE}{}", digest::key(&parts));

    let page = sources.iter().find(|source| source.path == PAGE);
    let line = page.and_then(|page| page.text.lines().position(|line| line.starts_with(LINE)));
    let current = page.zip(line).and_then(|(page, line)| page.text.lines().nth(line));
    if current == Some(expected.as_str()) {
        return Vec::new();
    }
    vec![Fault {
        path: PAGE.to_owned(),
        line: line.map(|line| line + 1),
        what: format!(
            "{FOLDER} changed: see that the page still describes the wire, then give it the line \
             `{expected}`"
        ),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::source;

    fn fault(page: &str, code: &str) -> Option<String> {
        let sources = [source("crates/protocol/src/lib.rs", code), source(PAGE, page)];
        check(&sources).pop().map(|fault| fault.to_string())
    }

    #[test]
    fn page_passes_with_the_line_the_fault_names_until_the_code_changes() {
        let message = fault("# Wire\n", "//! Wire.\n").unwrap();
        let line = message.split('`').nth(1).unwrap();
        let page = format!("# Wire\n\n{line}\n");
        assert_eq!(fault(&page, "//! Wire.\n"), None);
        let message = fault(&page, "//! Wire, changed.\n").unwrap();
        assert!(message.starts_with("docs/formats/protocol.md:3: "), "{message}");
    }

    #[test]
    fn missing_page_is_at_fault() {
        assert_eq!(check(&[source("crates/protocol/src/lib.rs", "//! Wire.\n")]).len(), 1);
        assert!(check(&[source("crates/image/src/lib.rs", "//! Image.\n")]).is_empty());
    }
}
