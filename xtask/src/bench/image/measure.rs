//! What a program and everything it started took, as the kernel counted it.
//!
//! The kernel's count for children never goes back to zero, so each program is run by a process of its own: this
//! program again, with `bench measure`.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use serde_json::{Value, json};

use crate::process::Tool;

/// What one run took.
#[derive(Debug)]
pub(super) struct Taken(Value);

impl Taken {
    /// Runs `command`; `report` is a file for the count on its way here.
    pub(super) fn by(command: &[String], report: &Path) -> Result<Self> {
        let xtask = std::env::current_exe().context("find this program")?;
        Tool::new(xtask).args(["bench", "measure"]).arg(report).args(command).run()?;
        let text = fs::read(report).with_context(|| format!("read {}", report.display()))?;
        let value = serde_json::from_slice(&text);
        Ok(Self(value.with_context(|| format!("parse {}", report.display()))?))
    }

    /// Wall seconds, CPU seconds, peak MB, written MB.
    pub(super) fn in_order(&self) -> [f64; 4] {
        ["wall_s", "cpu_s", "peak_mb", "written_mb"]
            .map(|field| self.0[field].as_f64().unwrap_or(f64::NAN))
    }
}

/// `bench measure`: runs `command` and writes what it took to `report`.
pub(crate) fn run(report: &Path, command: &[String]) -> Result<()> {
    let [program, arguments @ ..] = command else { bail!("there is no program to measure") };
    let log = report.with_extension("log");
    let output = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    let mut child = Command::new(program);
    child.args(arguments).stdin(Stdio::null());
    child.stdout(output.try_clone().context("copy a file handle")?).stderr(output);
    let started = Instant::now();
    let status = child.status().with_context(|| format!("start {program}"))?;
    let wall_s = started.elapsed().as_secs_f64();
    if !status.success() {
        let words = fs::read_to_string(&log).unwrap_or_default();
        bail!("`{}` ended with {status}: {words}", command.join(" "));
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask what it took")?;
    let cpu = usage.user_time() + usage.system_time();
    let taken = json!({
        "wall_s": wall_s,
        "cpu_s": as_float(cpu.num_microseconds()) / 1e6,
        // Linux counts memory in KiB and output in 512-byte blocks, when pages become dirty.
        "peak_mb": as_float(usage.max_rss()) * 1024.0 / 1e6,
        "written_mb": as_float(usage.block_writes()) * 512.0 / 1e6,
    });
    fs::write(report, taken.to_string()).with_context(|| format!("write {}", report.display()))
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^53")]
fn as_float(count: i64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_programs_children_count_and_its_failure_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("taken.json");
        let command = |script: &str| ["sh", "-c", script].map(str::to_owned);
        let write = format!("head -c 4000000 /dev/zero > {}/file; sync", folder.path().display());
        run(&report, &command(&write)).unwrap();
        let taken = Taken(serde_json::from_slice(&fs::read(&report).unwrap()).unwrap()).in_order();
        assert!(taken.iter().all(|count| *count > 0.0), "{taken:?}");
        assert!(taken[3] >= 4.0, "{taken:?}");
        let error = run(&report, &command("echo words; exit 4")).unwrap_err().to_string();
        assert!(error.contains("words"), "{error}");
    }
}
