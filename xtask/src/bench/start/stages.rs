//! From `create()` to ready, step by step, beside a machine that QEMU restores with nothing around it.
//!
//! The steps are those of the run record, each from the end of the one before. What `msb` itself takes
//! around them is not in it.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Starts, Way};
use crate::{
    bench::{
        home::DEBIAN,
        qemu::RawTemplate,
        report::Report,
        timed::{Timed, ms},
    },
    guest, terminal,
};

const SANDBOX: &str = "bench-stages";

const WAYS: [Way; 4] = [Way::Cold, Way::ColdUnconfined, Way::Template, Way::ImageTemplate];

/// Steps as the run record names them, in their order.
const STEPS: [&str; 11] = [
    "found_us",
    "image_us",
    "catalogue_us",
    "disk_us",
    "launch_us",
    "supervisor_us",
    "vmm_us",
    "exec_us",
    "hello_us",
    "agent_ready_us",
    "ready_us",
];

/// The step that ends our own work before the VMM's first instruction.
const EXEC: &str = "exec_us";

/// Every way, `runs` times in turn; one report for each.
pub(super) fn run(starts: &Starts, runs: usize) -> Result<Vec<Report>> {
    let guest = &starts.home.installed.guest;
    let raw = RawTemplate::save(&guest.join(guest::KERNEL), &guest.join(guest::INITRAMFS))?;
    terminal::step(format_args!(
        "Starting {runs} times each: {}; raw restore",
        WAYS.map(Way::name).join(", ")
    ));
    let report = |way: &Way| starts.report(format!("start {}", way.name()), "ms");
    let mut reports: Vec<Report> = WAYS.iter().map(report).collect();
    let mut restored = starts.report("start raw", "ms");
    for _ in 0..runs {
        for (way, report) in WAYS.iter().zip(&mut reports) {
            let mut create = starts.home.command(&["create", "-q", "--name", SANDBOX, DEBIAN]);
            create.envs(starts.choose(*way)?.iter().copied());
            let created = Timed::of(&mut create)?;
            let run = starts.record(SANDBOX, *way)?;
            note(&run["boot"], report).with_context(|| format!("start {}", way.name()))?;
            report.add("msb create, the whole command", ms(created.whole));
            starts.remove(&[SANDBOX])?;
        }
        restored.add("raw QEMU, restored, to the agent's answer", ms(raw.restore()?));
    }
    reports.push(restored);
    Ok(reports)
}

fn note(times: &Value, report: &mut Report) -> Result<()> {
    let mut before = 0.0;
    for step in STEPS {
        let at = times[step].as_f64().with_context(|| format!("{step} in {times}"))? / 1e3;
        // A step that there was not.
        if at > 0.0 {
            report.add(step.trim_end_matches("_us"), at - before);
            before = at;
        }
        if step == EXEC && at > 0.0 {
            report.add("create to the VMM's exec", at);
        }
    }
    report.add("create to ready", before);
    Ok(())
}
