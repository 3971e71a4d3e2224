//! What sandboxes from one template take of the host's memory, alone and together.

use std::fs;

use anyhow::{Context as _, Result};

use super::{Starts, Way, output};
use crate::{
    bench::report::Report,
    proc::{member, to_float},
    terminal,
};

/// Sandboxes that run when it is looked at; one sample for each of them.
const COUNTS: [usize; 3] = [1, 4, 8];

/// Supervisors and VMMs, each sandbox's and the sum.
pub(super) fn run(starts: &Starts) -> Result<Vec<Report>> {
    terminal::step(format_args!("Memory of {COUNTS:?} sandboxes from one template"));
    let mut each = starts.report("start memory of each", "MiB");
    let mut all = starts.report("start memory of all", "MiB");
    let mut names: Vec<String> = Vec::new();
    for count in COUNTS {
        for number in names.len()..count {
            let name = format!("bench-memory-{number}");
            output::create_and_exec(starts, Way::ImageTemplate, &name, &["/bin/echo", "hi"])?;
            names.push(name);
        }
        let mut unshared = 0.0;
        for name in &names {
            let run = starts.home.record(name)?;
            for (process, pid) in [("VMM", &run["vmm_pid"]), ("supervisor", &run["pid"])] {
                let pid = pid.as_u64().with_context(|| format!("the {process} of {name}"))?;
                let taken = Taken::of(pid)?;
                each.add(&format!("{count}: {process}, resident"), taken.resident);
                each.add(&format!("{count}: {process}, unshared"), taken.unshared);
                unshared += taken.unshared;
            }
        }
        all.add(&format!("{count}: unshared"), unshared);
    }
    starts.remove(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    Ok(vec![each, all])
}

/// What a process has in memory, MiB.
struct Taken {
    resident: f64,
    /// Written by it, and nobody else's.
    unshared: f64,
}

impl Taken {
    fn of(pid: u64) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps_rollup");
        let rollup = fs::read_to_string(&path)
            .with_context(|| format!("read {path}, which takes root: a sandbox is confined"))?;
        let mib = |name| to_float(member(&rollup, name)) / 1024.0;
        Ok(Self { resident: mib("Rss:"), unshared: mib("Private_Dirty:") })
    }
}
