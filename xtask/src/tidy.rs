//! `cargo xtask tidy`: rules of this repository that no other tool knows.
//!
//! A rule looks at one file or at the whole, and returns faults; each fault says what the rule is
//! and what to do. The rules are those of CONTRIBUTING.md; every one has a test that breaks it.

mod citations;
mod edges;
mod imports;
mod lines;
mod protocol;

use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};

use crate::{process::Tool, terminal, workspace};

/// A text file of the repository.
#[derive(Debug)]
struct Source {
    /// Path from the root, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_markdown(&self) -> bool {
        self.path.ends_with(".md")
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or(&self.path)
    }

    fn fault(&self, line: usize, what: impl Into<String>) -> Fault {
        Fault { path: self.path.clone(), line: Some(line), what: what.into() }
    }
}

/// One place that breaks a rule.
#[derive(Debug)]
struct Fault {
    path: String,
    /// Counted from one; none when the fault is the file as a whole.
    line: Option<usize>,
    /// The rule and the fix.
    what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.what),
            None => write!(f, "{}: {}", self.path, self.what),
        }
    }
}

/// Checks every rule and shows every fault.
pub(crate) fn run() -> Result<()> {
    terminal::step("tidy");
    let sources = sources()?;
    let mut faults = edges::check(&workspace::metadata()?);
    faults.extend(protocol::check(&sources));
    for source in &sources {
        faults.extend(lines::check(source));
        faults.extend(imports::check(source));
        faults.extend(citations::check(source, &|path| workspace::root().join(path).exists()));
    }
    for fault in &faults {
        terminal::note(fault);
    }
    if !faults.is_empty() {
        bail!("tidy found {} faults", faults.len());
    }
    Ok(())
}

/// Rust and Markdown files that git knows or would add.
fn sources() -> Result<Vec<Source>> {
    let list = Tool::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs", "*.md"])
        .in_dir(workspace::root())
        .output()?;
    let paths = list.lines().filter(|path| workspace::root().join(path).is_file());
    paths
        .map(|path| {
            let text = fs::read_to_string(workspace::root().join(path))
                .with_context(|| format!("read {path}"))?;
            Ok(Source { path: path.to_owned(), text })
        })
        .collect()
}

#[cfg(test)]
fn source(path: &str, text: &str) -> Source {
    Source { path: path.to_owned(), text: text.to_owned() }
}
