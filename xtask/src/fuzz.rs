//! `cargo xtask fuzz`: a minute of hostile bytes for each parser. The fuzzer itself is `crates/fuzz`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};

use crate::{cli::FuzzOptions, process::Tool, terminal, workspace};

/// Builds the fuzzer and runs it; fails with the input that broke something.
pub(crate) fn run(options: &FuzzOptions) -> Result<()> {
    let seed = match options.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs(),
    };
    terminal::step(format_args!("Fuzzing, {} s for each target, --seed {seed}", options.seconds));
    // In every crate that has targets; with the tests' features they are built already.
    Tool::cargo()
        .args(["test", "--release", "--quiet", "--workspace", "--test", "fuzz"])
        .args(["--features", workspace::TEST_FEATURES, "--"])
        .args([options.seconds.to_string(), seed.to_string()])
        .in_dir(workspace::root())
        .run()
}
