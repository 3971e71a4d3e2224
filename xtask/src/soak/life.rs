//! `cargo xtask soak life`: sandboxes created, used, stopped and removed again, two at a time; then
//! nothing of them may be left.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::in_lanes;
use crate::{
    bench::home::{BenchHome, IMAGE},
    terminal,
};

/// Sandboxes at once.
const LANES: usize = 2;

/// Time for the last processes to be gone.
const SETTLE: Duration = Duration::from_secs(60);

const NAME: &str = "soak-life";

/// Lives `count` lives and compares what is held before and after.
pub(super) fn run(count: usize) -> Result<()> {
    let home = BenchHome::prepare_in("soak-life-home")?;
    home.msb().args(["rm", "-f", "--all"]).output()?;
    // Once, so that what is made at first use is there.
    cycle(&home, 0)?;
    let before = held(&home)?;
    terminal::step(format_args!("{count} lives, {LANES} at a time"));
    let begun = Instant::now();
    // 0 was the one before.
    in_lanes(LANES, 1..count + 1, |turn| {
        cycle(&home, turn).with_context(|| format!("life {turn}"))
    })?;
    terminal::step(format_args!("{:.0} s", begun.elapsed().as_secs_f64()));
    settled(&home, &before)
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

type Held = BTreeMap<&'static str, u64>;

/// What the home and the machine hold of sandboxes.
fn held(home: &BenchHome) -> Result<Held> {
    let root = &home.installed.home;
    let sandboxes = root.join("sandboxes");
    let rows = home.msb().args(["ls", "-q"]).output()?.lines().count();
    let folders = fs::read_dir(&sandboxes).map(Iterator::count).unwrap_or_default();
    Ok(Held::from([
        ("rows of the catalogue", rows as u64),
        ("folders of sandboxes", folders as u64),
        ("bytes of sandboxes", disk_bytes(&sandboxes)?),
        ("bytes of images", disk_bytes(&root.join("images"))?),
        ("processes", processes()?),
    ]))
}

/// Processes of the host that are named after a sandbox of ours.
fn processes() -> Result<u64> {
    let mut found = 0;
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_ours = line.starts_with(b"msb-") || line.starts_with(b"qemu-");
        found += u64::from(is_ours && String::from_utf8_lossy(&line).contains(NAME));
    }
    Ok(found)
}

/// Bytes of disk below a path, as `du` counts them.
fn disk_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let what = || format!("look at {}", path.display());
    let meta = path.symlink_metadata().with_context(what)?;
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).with_context(what)? {
            bytes += disk_bytes(&entry.with_context(what)?.path())?;
        }
    }
    Ok(bytes)
}

/// Compares until nothing is held more than before.
fn settled(home: &BenchHome, before: &Held) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        let now = held(home)?;
        if before.iter().all(|(what, count)| now[what] <= *count) {
            for (what, count) in now {
                terminal::result(format_args!("{count:10}  {what}, {} before", before[what]));
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("more than before: before {before:?}, now {now:?}");
        }
    }
}
