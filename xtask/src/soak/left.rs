//! What a home and the machine hold of sandboxes, before and after.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{bench::home::BenchHome, terminal};

/// Time for the last processes to be gone.
const SETTLE: Duration = Duration::from_secs(60);

/// Counts, by what is counted.
#[derive(Debug)]
pub(super) struct Left(BTreeMap<&'static str, u64>);

impl Left {
    /// What is there now; processes are those of sandboxes whose names begin with `name`.
    pub(super) fn look(home: &BenchHome, name: &str) -> Result<Self> {
        let root = &home.installed.home;
        let sandboxes = root.join("sandboxes");
        let rows = home.msb().args(["ls", "-q"]).output()?.lines().count();
        let folders = fs::read_dir(&sandboxes).map(Iterator::count).unwrap_or_default();
        Ok(Self(BTreeMap::from([
            ("rows of the catalogue", rows as u64),
            ("folders of sandboxes", folders as u64),
            ("bytes of sandboxes", disk_bytes(&sandboxes)?),
            ("bytes of images", disk_bytes(&root.join("images"))?),
            ("bytes of templates", disk_bytes(&root.join("templates"))?),
            ("processes", processes(name)?),
        ])))
    }

    /// Compares until nothing is held more than this.
    pub(super) fn settled(&self, home: &BenchHome, name: &str) -> Result<()> {
        let deadline = Instant::now() + SETTLE;
        loop {
            let now = Self::look(home, name)?;
            if self.0.iter().all(|(what, count)| now.0[what] <= *count) {
                for (what, count) in now.0 {
                    terminal::result(format_args!("{count:10}  {what}, {} before", self.0[what]));
                }
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("more than before: before {self:?}, now {now:?}");
            }
        }
    }
}

/// Processes of the host that are named after such a sandbox.
fn processes(name: &str) -> Result<u64> {
    let mut found = 0;
    for entry in fs::read_dir("/proc").context("read /proc")?.flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let is_ours = line.starts_with(b"msb-") || line.starts_with(b"qemu-");
        found += u64::from(is_ours && String::from_utf8_lossy(&line).contains(name));
    }
    Ok(found)
}

/// Bytes of disk below a path, as `du` counts them; 0 where there is nothing.
fn disk_bytes(path: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let what = || format!("look at {}", path.display());
    let Ok(meta) = path.symlink_metadata() else { return Ok(0) };
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path).with_context(what)? {
            bytes += disk_bytes(&entry.with_context(what)?.path())?;
        }
    }
    Ok(bytes)
}
