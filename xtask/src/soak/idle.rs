//! `cargo xtask soak idle`: sandboxes that nobody uses, and what they take meanwhile. Their supervisors
//! must not take a tick.

use std::{
    fs,
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    bench::home::{BenchHome, IMAGE},
    proc::{member, to_float},
    terminal,
};

/// Ticks of a second in `/proc/PID/stat`: `USER_HZ`, which every Linux has at 100.
const TICKS: f64 = 100.0;

/// Time for what comes after a start, such as a template being built, to be over.
const SETTLE: Duration = Duration::from_secs(30);

/// A supervisor and its VMM.
#[derive(Debug, Clone, Copy)]
struct Pair {
    supervisor: u64,
    vmm: u64,
}

/// What a process has taken so far.
#[derive(Debug, Clone, Copy)]
struct Taken {
    wake_ups: u64,
    ticks: u64,
    resident_kib: u64,
    /// Its share of what it has in memory.
    proportional_kib: u64,
}

/// Lets `sandboxes` of them stand for `minutes`.
pub(super) fn run(sandboxes: usize, minutes: f64) -> Result<()> {
    let home = BenchHome::prepare_in("soak-idle-home")?;
    home.msb().args(["rm", "-f", "--all"]).output()?;
    let mut pairs = Vec::new();
    for number in 0..sandboxes {
        let name = format!("soak-idle-{number}");
        home.msb().args(["create", "-q", "--name", &name, IMAGE]).output()?;
        let record = home.record(&name)?;
        let pid = |member: &str| record[member].as_u64().with_context(|| format!("no {member}"));
        pairs.push(Pair { supervisor: pid("pid")?, vmm: pid("vmm_pid")? });
    }
    let time = Duration::from_secs_f64(minutes * 60.0);
    terminal::step(format_args!("{sandboxes} sandboxes stand for {} s", time.as_secs()));
    pause(SETTLE);
    let begun = Instant::now();
    let before = all(&pairs)?;
    pause(time);
    let after = all(&pairs)?;
    let seconds = begun.elapsed().as_secs_f64();
    let mut total = 0;
    for (number, (before, after)) in before.iter().zip(&after).enumerate() {
        for (what, before, after) in [("supervisor", before.0, after.0), ("VMM", before.1, after.1)]
        {
            terminal::result(format_args!(
                "{what:10} {number}: {:6} wake-ups, {:5} ticks ({:5.2} % of a core), {:7} KiB resident, \
                 {:7} KiB of its own",
                // A thread that has ended took its count along.
                after.wake_ups.saturating_sub(before.wake_ups),
                after.ticks - before.ticks,
                to_float(after.ticks - before.ticks) / TICKS / seconds * 100.0,
                after.resident_kib,
                after.proportional_kib,
            ));
        }
        total += after.0.ticks - before.0.ticks;
    }
    home.msb().args(["rm", "-f", "--all"]).output()?;
    ensure!(total == 0, "idle supervisors took {total} ticks");
    Ok(())
}

/// Waits; there is nothing to wait for.
fn pause(time: Duration) {
    let (_nobody, nothing) = mpsc::channel::<()>();
    // It ends by its time alone.
    nothing.recv_timeout(time).ok();
}

fn all(pairs: &[Pair]) -> Result<Vec<(Taken, Taken)>> {
    pairs.iter().map(|pair| Ok((taken(pair.supervisor)?, taken(pair.vmm)?))).collect()
}

fn taken(pid: u64) -> Result<Taken> {
    let read = |path: String| fs::read_to_string(&path).with_context(|| format!("read {path}"));
    let mut wake_ups = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("list threads")? {
        let status = read(thread?.path().join("status").display().to_string())?;
        wake_ups += member(&status, "voluntary_ctxt_switches:");
    }
    let stat = read(format!("/proc/{pid}/stat"))?;
    // proc_pid_stat(5): the name may hold anything, so members are counted behind it, from 3 on.
    let members = stat.rsplit_once(") ").map(|(_, members)| members).unwrap_or_default();
    let number =
        |at: usize| members.split(' ').nth(at - 3).and_then(|text| text.parse::<u64>().ok());
    let ticks = number(14).zip(number(15)).map(|(user, system)| user + system);
    let status = read(format!("/proc/{pid}/status"))?;
    // Not to be had of a process that is not dumpable, but by root.
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    Ok(Taken {
        wake_ups,
        ticks: ticks.with_context(|| format!("the times of process {pid}"))?,
        resident_kib: member(&status, "VmRSS:"),
        proportional_kib: member(&rollup, "Pss:"),
    })
}
