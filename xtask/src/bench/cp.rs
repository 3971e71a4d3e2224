//! Scenario `cp`: files between host and sandbox, beside `tar` at one end and in a command at the other.
//!
//! ```text
//! large   one file of 256 MiB
//! small   10,000 files of 1 KiB in 100 folders
//! ```

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};

use super::{exec::note_memory, report::Report};
use crate::{load::Loaded, process::Tool, terminal, workspace};

const SANDBOX: &str = "bench-cp";

const LARGE_BYTES: usize = 256 << 20;
const SMALL_BYTES: usize = 1 << 10;
const FOLDERS: usize = 100;
const FILES: usize = 100;

/// Most runs: each moves what is many samples in itself.
const RUNS: usize = 3;

/// Everything, `runs` times in turn.
pub(super) fn run(runs: usize) -> Result<Vec<Report>> {
    let loaded = Loaded::start(SANDBOX)?;
    let kernel = loaded.shell("uname -r")?;
    let work = tempfile::tempdir_in(workspace::target()?).context("create a folder for files")?;
    make_trees(work.path())?;
    let mut memory = Report::new("cp memory", "MiB", kernel.clone());
    note_memory(&loaded, &mut memory, "before")?;
    let report = |what: &str| Report::new(format!("cp {what}"), "s", kernel.clone());
    let mut reports = [
        report("256 MiB into the sandbox"),
        report("256 MiB out of it"),
        report("10,000 files into the sandbox"),
        report("10,000 files out of it"),
    ];
    terminal::step(format_args!("Copying, {} times each way", runs.min(RUNS)));
    for _ in 0..runs.min(RUNS) {
        for (tree, count, directions) in [("large", 1, 0..2), ("small", FOLDERS * FILES, 2..4)] {
            let Some([into, out]) = reports.get_mut(directions) else { unreachable!() };
            for way in [Way::Tar, Way::Copy] {
                let trip = Trip { loaded: &loaded, work: work.path(), tree, count, way };
                into.add(way.name(), trip.inwards()?);
                out.add(way.name(), trip.outwards()?);
            }
        }
    }
    note_memory(&loaded, &mut memory, "after")?;
    Ok(reports.into_iter().chain([memory]).collect())
}

fn make_trees(work: &Path) -> Result<()> {
    let write = |path: &Path, bytes: usize| {
        // Not zeros: those would travel as holes.
        fs::write(path, vec![b'x'; bytes]).with_context(|| format!("write {}", path.display()))
    };
    let folder = |path: &Path| {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))
    };
    folder(&work.join("large"))?;
    write(&work.join("large/file"), LARGE_BYTES)?;
    for number in 0..FOLDERS {
        let path = work.join(format!("small/{number}"));
        folder(&path)?;
        (0..FILES).try_for_each(|file| write(&path.join(file.to_string()), SMALL_BYTES))?;
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Tar,
    Copy,
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Tar => "tar and msb exec",
            Self::Copy => "msb cp",
        }
    }
}

/// A tree on its way into the sandbox and back.
struct Trip<'a> {
    loaded: &'a Loaded,
    work: &'a Path,
    tree: &'static str,
    count: usize,
    way: Way,
}

impl Trip<'_> {
    fn inwards(&self) -> Result<f64> {
        let tree = self.tree;
        self.loaded.shell(&format!("rm -rf /root/{tree}; sync"))?;
        let begun = Instant::now();
        match self.way {
            Way::Copy => self.copy(&self.path(tree), &format!("{SANDBOX}:/root/{tree}"))?,
            Way::Tar => self.pipe(&format!(
                "tar -C {} -c {tree} | $MSB exec -i {SANDBOX} -- tar -x -C /root",
                self.work.display()
            ))?,
        }
        let took = begun.elapsed().as_secs_f64();
        let counted = self.loaded.shell(&format!("find /root/{tree} -type f | wc -l"))?;
        ensure!(counted.trim() == self.count.to_string(), "{counted} files arrived");
        Ok(took)
    }

    fn outwards(&self) -> Result<f64> {
        let tree = self.tree;
        let target = self.work.join("back");
        fs::create_dir(&target).with_context(|| format!("create {}", target.display()))?;
        let begun = Instant::now();
        match self.way {
            Way::Copy => {
                self.copy(&format!("{SANDBOX}:/root/{tree}"), &self.path(&format!("back/{tree}")))?;
            }
            Way::Tar => self.pipe(&format!(
                "$MSB exec {SANDBOX} -- tar -c -C /root {tree} | tar -C {} -x",
                target.display()
            ))?,
        }
        let took = begun.elapsed().as_secs_f64();
        Tool::new("diff").arg("-r").args([self.work.join(tree), target.join(tree)]).run()?;
        fs::remove_dir_all(&target).with_context(|| format!("remove {}", target.display()))?;
        Ok(took)
    }

    fn path(&self, name: &str) -> String {
        self.work.join(name).display().to_string()
    }

    fn copy(&self, from: &str, to: &str) -> Result<()> {
        self.loaded.msb().args(["cp", "-q", from, to]).run()
    }

    fn pipe(&self, script: &str) -> Result<()> {
        let installed = &self.loaded.installed;
        Tool::new("sh")
            .args(["-c", script])
            .env("MSB", &installed.msb)
            .env(crate::env::MSB_HOME, &installed.home)
            .run()
    }
}
