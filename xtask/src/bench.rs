//! `cargo xtask bench`: scenarios, measured on this machine, variants in turn.
//!
//! Interleaving is what makes variants comparable on a noisy machine: the first run of each, then
//! the second of each, and so on. Results are a table for people and JSON lines for files.

mod boot;
mod qemu;
mod report;

use anyhow::Result;

use crate::cli::{BenchOptions, Scenario};

/// Runs the scenario and reports it.
pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    let report = match &options.scenario {
        Scenario::Boot => boot::run(options.runs)?,
        Scenario::Kernel { kernels } => boot::compare_kernels(kernels, options.runs)?,
    };
    report.show();
    match &options.json {
        Some(file) => report.append_to(file),
        None => Ok(()),
    }
}
