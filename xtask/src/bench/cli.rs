//! Scenario `cli`: commands that only look, with a hundred sandboxes in the catalogue; beside upstream's
//! program where it can be had, which lists as many of its own: none, since it cannot start any here.

use std::{process::Command, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::{
    home::{BenchHome, IMAGE},
    image::upstream,
    report::Report,
};
use crate::terminal;

/// Sandboxes in the catalogue.
const SANDBOXES: usize = 100;

/// Runs of a command that are timed together: one alone is a few milliseconds.
const TOGETHER: u32 = 10;

/// Every command, `runs` times in turn.
pub(super) fn run(runs: usize) -> Result<Report> {
    let home = BenchHome::prepare_in("bench-cli-home")?;
    home.msb().args(["rm", "-f", "--all"]).output()?;
    terminal::step(format_args!("Defining {SANDBOXES} sandboxes"));
    for number in 0..SANDBOXES {
        let name = format!("bench-{number:03}");
        home.msb().args(["create", "-q", "--no-start", "--name", &name, IMAGE]).output()?;
    }
    let commands: [&[&str]; 5] = [
        &["version"],
        &["ls"],
        &["ls", "--format", "json"],
        &["inspect", "bench-050"],
        &["history"],
    ];
    let upstream = upstream();
    let mut report = Report::new("cli", "ms", home.kernel.clone());
    for _ in 0..runs {
        for arguments in commands {
            let mut msb = Command::new(&home.installed.msb);
            msb.args(arguments).env(crate::env::MSB_HOME, &home.installed.home);
            report.add(&format!("msb {}", arguments.join(" ")), milliseconds(&mut msb)?);
        }
        if let Some(upstream) = &upstream {
            let none = tempfile::tempdir().context("create a temporary folder")?;
            let mut list = Command::new(upstream);
            list.arg("ls").env("HOME", none.path());
            report.add("upstream's msb ls, of none", milliseconds(&mut list)?);
        }
    }
    home.msb().args(["rm", "-f", "--all"]).output()?;
    Ok(report)
}

fn milliseconds(command: &mut Command) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..TOGETHER {
        let ended = command.output().context("run a command")?;
        ensure!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3 / f64::from(TOGETHER))
}
