//! Machines that are saved while they run: snapshots, restores, forks.

use anyhow::{Context as _, Result};

use super::Starts;
use crate::{
    bench::{
        home::DEBIAN,
        report::Report,
        timed::{Timed, ms},
    },
    terminal,
};

const SOURCE: &str = "bench-source";
const SNAPSHOT: &str = "bench-snapshot";

/// Machines: what `--memory` takes, and what is in their memory beside the system: random bytes.
const MACHINES: [(&str, &str); 4] = [("512M", "0"), ("512M", "128M"), ("2G", "0"), ("2G", "512M")];

/// Most runs: each writes and reads a machine.
const MOST_RUNS: usize = 5;

/// Snapshots of machines of several sizes, and restores from them.
pub(super) fn snapshots(starts: &Starts, runs: usize) -> Result<Vec<Report>> {
    let (home, runs) = (&starts.home, runs.min(MOST_RUNS));
    terminal::step(format_args!("Snapshots of running machines, {runs} times each"));
    let mut report = starts.report("start snapshots", "ms");
    for (memory, filled) in MACHINES {
        home.msb()
            .args(["create", "-q", "--cold", "--memory", memory, "--name", SOURCE, DEBIAN])
            .output()?;
        let fill = format!("mount -t tmpfs none /mnt; head -c {filled} /dev/urandom > /mnt/filled");
        home.msb().args(["exec", SOURCE, "--", "sh", "-c", &fill]).output()?;
        let machine = match filled {
            "0" => memory.to_owned(),
            _ => format!("{memory} with {filled} filled"),
        };
        for _ in 0..runs {
            let words = ["snapshot", "create", SNAPSHOT, "--from", SOURCE, "--full", "--force"];
            let taken = Timed::of(&mut home.command(&words))?;
            report.add(&format!("{machine}: snapshot, pause"), told(&taken.stderr)?);
            report.add(&format!("{machine}: snapshot, the whole command"), ms(taken.whole));
            let words = ["restore", "-q", SNAPSHOT, "--name", "bench-restored"];
            let restored = Timed::of(&mut home.command(&words))?;
            report.add(&format!("{machine}: restore, the whole command"), ms(restored.whole));
            starts.remove(&["bench-restored"])?;
        }
        starts.remove(&[SOURCE])?;
        home.msb().args(["snapshot", "rm", SNAPSHOT]).output()?;
    }
    Ok(vec![report])
}

/// Forks with one child and with four.
pub(super) fn forks(starts: &Starts, runs: usize) -> Result<Vec<Report>> {
    let (home, runs) = (&starts.home, runs.min(MOST_RUNS));
    terminal::step(format_args!("Forks, {runs} times each"));
    let mut report = starts.report("start forks", "ms");
    home.msb().args(["create", "-q", "--cold", "--name", SOURCE, DEBIAN]).output()?;
    let children = ["bench-child-1", "bench-child-2", "bench-child-3", "bench-child-4"];
    for _ in 0..runs {
        for count in [1, children.len()] {
            let mut words = vec!["fork", SOURCE];
            words.extend(children[..count].iter().flat_map(|child| ["--name", child]));
            let mut fork = home.command(&words);
            fork.env("MSB_LOG", "microsandbox=info");
            let forked = Timed::of(&mut fork)?;
            report.add(&format!("{count}: pause"), logged(&forked.stderr)?);
            report.add(&format!("{count}: the whole command"), ms(forked.whole));
            starts.remove(&children[..count])?;
        }
    }
    starts.remove(&[SOURCE])?;
    Ok(vec![report])
}

/// How long the sandbox stood still, as `msb snapshot create` tells it.
fn told(messages: &str) -> Result<f64> {
    let number = messages.split_once("stood still for ").and_then(|(_, rest)| rest.split_once(' '));
    let number = number.and_then(|(number, _)| number.parse().ok());
    number.with_context(|| format!("no time in {messages:?}"))
}

/// How long it stood still, as the log of `msb fork` has it.
fn logged(log: &str) -> Result<f64> {
    let word = log.split_once(" still=").and_then(|(_, rest)| rest.split_whitespace().next());
    let units = [("ms", 1.0), ("µs", 1e-3), ("s", 1e3)];
    let number = word.and_then(|word| {
        units.iter().find_map(|(unit, factor)| Some((word.strip_suffix(unit)?, factor)))
    });
    let milliseconds =
        number.and_then(|(number, factor)| Some(number.parse::<f64>().ok()? * factor));
    milliseconds.with_context(|| format!("no time in {log:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_in_every_unit() {
        let line =
            |time: &str| format!("INFO stood still to be forked sandbox=\"a\" still={time}\n");
        for (time, expected) in [("12.5ms", 12.5), ("500µs", 0.5), ("1.5s", 1500.0)] {
            let found = logged(&line(time)).unwrap();
            assert!((found - expected).abs() < 1e-9, "{time}: {found}");
        }
        assert!(logged("nothing").is_err());
        assert!((told("msb: the sandbox stood still for 285 ms\n").unwrap() - 285.0).abs() < 1e-9);
    }
}
