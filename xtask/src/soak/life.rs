//! `cargo xtask soak life`: sandboxes created, used, stopped and removed again, two at a time; then
//! nothing of them may be left.

use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::{in_lanes, left::Left};
use crate::{
    bench::home::{BenchHome, IMAGE},
    terminal,
};

/// Sandboxes at once.
const LANES: usize = 2;

const NAME: &str = "soak-life";

/// Lives `count` lives and compares what is held before and after.
pub(super) fn run(count: usize) -> Result<()> {
    let home = BenchHome::prepare_in("soak-life-home")?;
    home.msb().args(["rm", "-f", "--all"]).output()?;
    // Once, so that what is made at first use is there.
    cycle(&home, 0)?;
    let before = Left::look(&home, NAME)?;
    terminal::step(format_args!("{count} lives, {LANES} at a time"));
    let begun = Instant::now();
    // 0 was the one before.
    in_lanes(LANES, 1..count + 1, |turn| {
        cycle(&home, turn).with_context(|| format!("life {turn}"))
    })?;
    terminal::step(format_args!("{:.0} s", begun.elapsed().as_secs_f64()));
    before.settled(&home, NAME)
}

fn cycle(home: &BenchHome, turn: usize) -> Result<()> {
    let name = format!("{NAME}-{turn}");
    home.msb().args(["create", "-q", "--name", &name, IMAGE]).output()?;
    let script = "echo written > /root/file && sync && cat /root/file";
    let said = home.msb().args(["exec", &name, "--", "sh", "-c", script]).output()?;
    if said.trim() != "written" {
        bail!("{name} said {said:?}");
    }
    home.msb().args(["stop", &name]).output()?;
    home.msb().args(["rm", &name]).output()?;
    Ok(())
}
