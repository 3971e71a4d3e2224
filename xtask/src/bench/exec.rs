//! Scenario `exec`: commands in a running sandbox.
//!
//! Round trips of `true` over one connection and through `msb`; bytes out of and into a command, beside
//! what the console port carries by itself; and what supervisor and agent hold before and after.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{
    qemu::{self, Direction},
    report::Report,
};
use crate::{guest, load::Loaded, terminal};

const SANDBOX: &str = "bench-exec";

/// Round trips of one run.
const TRIPS: &str = "200";
/// Bytes of one stream.
const STREAM_BYTES: u32 = 1 << 30;

/// Most runs of streams: each is a gibibyte, which is many samples in itself.
const STREAM_RUNS: usize = 3;

/// Everything, `runs` times in turn.
pub(super) fn run(runs: usize) -> Result<Vec<Report>> {
    let loaded = Loaded::start(SANDBOX)?;
    let kernel = loaded.shell("uname -r")?;
    let (guest_kernel, busybox) = (loaded.installed.guest.join(guest::KERNEL), loaded.busybox()?);
    let mut trips = Report::new("exec trips", "ms", kernel.clone());
    let mut output = Report::new("exec output, 1 GiB", "MB/s", kernel.clone());
    let mut input = Report::new("exec input, 1 GiB", "MB/s", kernel.clone());
    let mut memory = Report::new("exec memory", "MiB", kernel);
    note_memory(&loaded, &mut memory, "before")?;
    terminal::step(format_args!("Round trips and streams, {runs} times"));
    for run in 0..runs {
        for (lanes, variant) in [("1", "true, one at a time"), ("16", "true, 16 at once")] {
            for took in loaded.load(&["trips", TRIPS, lanes])? {
                trips.add(variant, took * 1e3);
            }
        }
        let begun = Instant::now();
        loaded.msb().args(["exec", SANDBOX, "--", "true"]).output()?;
        trips.add("msb exec -- true", begun.elapsed().as_secs_f64() * 1e3);
        if run >= STREAM_RUNS {
            continue;
        }
        for (direction, word, report) in
            [(Direction::Output, "output", &mut output), (Direction::Input, "input", &mut input)]
        {
            let raw = qemu::pump(&guest_kernel, &busybox, direction, STREAM_BYTES.into())?;
            report.add("raw port", megabytes_per_second(raw));
            for took in loaded.load(&[word, &STREAM_BYTES.to_string()])? {
                report.add("command", megabytes_per_second(Duration::from_secs_f64(took)));
            }
        }
    }
    note_memory(&loaded, &mut memory, "after")?;
    Ok(vec![trips, output, input, memory])
}

fn megabytes_per_second(took: Duration) -> f64 {
    f64::from(STREAM_BYTES) / took.as_secs_f64() / 1e6
}

/// Notes what supervisor and agent hold.
pub(super) fn note_memory(loaded: &Loaded, report: &mut Report, when: &str) -> Result<()> {
    let [supervisor, agent] = loaded.memory()?;
    report.add(&format!("supervisor {when}"), supervisor);
    report.add(&format!("agent {when}"), agent);
    Ok(())
}
