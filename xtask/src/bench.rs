//! `cargo xtask bench`: scenarios, measured on this machine, variants in turn.
//!
//! Interleaving is what makes variants comparable on a noisy machine: the first run of each, then
//! the second of each, and so on. Results are a table for people and JSON lines for files.

mod boot;
mod cli;
mod cp;
mod exec;
pub(crate) mod home;
mod image;
mod qemu;
mod report;
mod start;
pub(crate) mod templates;
mod timed;

use anyhow::Result;

use self::report::Report;
use crate::cli::{BenchOptions, Scenario};

/// Runs of each variant where none are asked for.
const RUNS: usize = 15;

/// Runs the scenario and reports it.
pub(crate) fn run(options: &BenchOptions) -> Result<()> {
    let default = match &options.scenario {
        Scenario::Start { .. } => start::RUNS,
        _ => RUNS,
    };
    let runs = options.runs.unwrap_or(default);
    let reports = match &options.scenario {
        Scenario::Boot => vec![boot::run(runs)?],
        Scenario::Cli => vec![cli::run(runs)?],
        Scenario::Cp => cp::run(runs)?,
        Scenario::Exec => exec::run(runs)?,
        Scenario::Floor { layout, into } => return image::floor(layout, into),
        Scenario::Image => image::run(runs)?,
        Scenario::Kernel { kernels } => vec![boot::compare_kernels(kernels, runs)?],
        Scenario::Start { only } => start::run(only, runs)?,
        Scenario::Measure { report, command } => return image::measure(report, command),
    };
    reports.iter().for_each(Report::show);
    match &options.json {
        Some(file) => reports.iter().try_for_each(|report| report.append_to(file)),
        None => Ok(()),
    }
}
