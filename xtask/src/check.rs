//! `cargo xtask check`: what must hold before a push, cheapest first. CI runs exactly this.

use anyhow::Result;

use crate::{process::Tool, terminal, tidy, workspace};

/// Version of the tool that judges dependencies; `--locked` builds it as it was released.
const DENY: &str = "cargo-deny@0.20.2";

/// Runs every check; the first that fails ends the run.
pub(crate) fn run() -> Result<()> {
    tidy::run()?;
    step(&["fmt", "--all", "--check"], None)?;
    step(
        &[
            "clippy",
            "--release",
            "--workspace",
            "--all-targets",
            "--features",
            workspace::TEST_FEATURES,
            "--",
            "--deny",
            "warnings",
        ],
        None,
    )?;
    let warnings = Some(("RUSTDOCFLAGS", "--deny warnings"));
    step(&["doc", "--release", "--workspace", "--no-deps", "--document-private-items"], warnings)?;
    if !Tool::cargo().args(["deny", "--version"]).succeeds()? {
        terminal::step(format_args!("Installing {DENY}"));
        Tool::cargo().args(["install", "--locked", "--quiet", DENY]).run()?;
    }
    // Advisories live in a git repository that a build machine may not reach.
    step(&["deny", "--workspace", "check", "licenses", "bans", "sources"], None)
}

fn step(arguments: &[&str], variable: Option<(&str, &str)>) -> Result<()> {
    terminal::step(format_args!("cargo {}", arguments.join(" ")));
    let mut cargo = Tool::cargo().args(arguments).in_dir(workspace::root());
    if let Some((name, value)) = variable {
        cargo = cargo.env(name, value);
    }
    cargo.run()
}
