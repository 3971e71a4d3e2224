//! `cargo xtask bench`: scenarios, measured on this machine, variants in turn.
//!
//! Interleaving is what makes variants comparable on a noisy machine: the first run of each, then
//! the second of each, and so on. Results are a table for people and JSON lines for files.

mod boot;
mod cli;
mod exec;
pub(crate) mod home;
mod image;
mod qemu;
mod report;
mod start;

use anyhow::Result;

use self::report::Report;
use crate::cli::{BenchOptions, Scenario};

/// Runs the scenario and reports it.
pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    let reports = match &options.scenario {
        Scenario::Boot => vec![boot::run(options.runs)?],
        Scenario::Cli => vec![cli::run(options.runs)?],
        Scenario::Exec => exec::run(options.runs)?,
        Scenario::Floor { layout, into } => return image::floor(layout, into),
        Scenario::Image => image::run(options.runs)?,
        Scenario::Kernel { kernels } => vec![boot::compare_kernels(kernels, options.runs)?],
        Scenario::Start => start::run(options.runs)?,
        Scenario::Measure { report, command } => return image::measure(report, command),
    };
    reports.iter().for_each(Report::show);
    match &options.json {
        Some(file) => reports.iter().try_for_each(|report| report.append_to(file)),
        None => Ok(()),
    }
}
