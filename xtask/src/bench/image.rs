//! Scenario `image`: from a registry and from an archive to a bootable disk, beside the floor and the peers.
//!
//! ```text
//! pull   400 MB in four gzip layers, Debian with Python and a compiler, from a registry on this machine
//! load   one uncompressed layer of 1.1 GB and 55,000 entries, from an OCI archive
//! ```
//! Every run starts with an empty store and a quiet disk. What a run took is what the kernel counted for its
//! whole process tree. A peer that is not there is said to be absent.

mod floor;
mod images;
mod measure;
mod peers;

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

pub(super) use self::peers::upstream;
pub(super) use self::{floor::run as floor, measure::run as measure};

use self::{images::Images, measure::Taken, peers::Registry};
use super::report::Report;
use crate::{process::Tool, terminal, workspace};

const PULLED: &str = "bench/debian:1";
const LOADED: &str = "bench/files:1";

/// Stands in a command for the empty folder of that run.
const FOLDER: &str = "{folder}";

/// One way to bring an image in: its name in the report and what is run.
struct Variant {
    name: String,
    command: Vec<String>,
}

/// Both scenarios, all variants in turn.
pub(super) fn run(runs: usize) -> Result<Vec<Report>> {
    let images = Images::ensure()?;
    let msb = peers::ours()?;
    let upstream = upstream();
    let umoci = crate::process::find("umoci");
    for (is_here, peer) in [(upstream.is_some(), "upstream's msb"), (umoci.is_some(), "umoci")] {
        if !is_here {
            terminal::note(format_args!("absent: {peer}"));
        }
    }
    let work = tempfile::tempdir_in(workspace::target()?).context("create a folder for stores")?;
    let registry = Registry::start(&images.registry, work.path())?;
    let pulled = format!("{}/{PULLED}", registry.address);
    let layout = work.path().join("layout");
    images.unpack_archive(&layout)?;

    let archive = text(&images.archive)?;
    let load_words = ["load", "-q", "-t", LOADED, "-i", &archive];
    let mut pull = vec![floor_of(&images.layout)?, home_of(&msb, &["pull", "-q", &pulled])];
    let mut load = vec![floor_of(&layout)?, home_of(&msb, &load_words)];
    if let Some(upstream) = &upstream {
        let pull_words = ["pull", "-q", "--insecure", &pulled];
        let name = format!("upstream's msb {}", peers::UPSTREAM_VERSION);
        pull.push(Variant { name: name.clone(), ..home_of(upstream, &pull_words) });
        load.push(Variant { name, ..home_of(upstream, &load_words) });
    }
    if umoci.is_some() {
        pull.push(unpack(&images.layout)?);
        load.push(unpack(&layout)?);
    }
    let mut reports = scenario("pull", &pull, work.path(), runs)?;
    reports.extend(scenario("load", &load, work.path(), runs)?);
    Ok(reports)
}

/// Runs the variants in turn; one report for each thing that is counted.
fn scenario(
    name: &'static str,
    variants: &[Variant],
    work: &Path,
    runs: usize,
) -> Result<Vec<Report>> {
    terminal::step(format_args!("{name}: {runs} times each of {} ways", variants.len()));
    let system = Tool::new("uname").arg("-sr").output()?;
    let report =
        |what: &str, unit| Report::new(format!("image {name}: {what}"), unit, system.clone());
    let mut reports = [
        report("wall time", "s"),
        report("CPU time of all processes", "s"),
        report("peak memory of the largest process", "MB"),
        report("bytes written", "MB"),
    ];
    for _ in 0..runs {
        for variant in variants {
            let folder = work.join("run");
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
            Tool::new("sync").run()?;
            let taken = Taken::by(&variant.command_in(&folder), &work.join("taken.json"))?;
            for (report, sample) in reports.iter_mut().zip(taken.in_order()) {
                report.add(&variant.name, sample);
            }
            fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
        }
    }
    Ok(reports.into())
}

/// A program called `msb`, ours or upstream's: both find their home by the same variable.
fn home_of(msb: &str, words: &[&str]) -> Variant {
    let home = format!("{}={FOLDER}", crate::env::MSB_HOME);
    Variant::new("msb", &[&["env", &home, msb], words].concat())
}

fn floor_of(layout: &Path) -> Result<Variant> {
    let xtask = text(&std::env::current_exe().context("find this program")?)?;
    let words = [&xtask, "bench", "floor", &text(layout)?, FOLDER];
    Ok(Variant::new("floor: unpack, digests, one write; a core for each layer", &words))
}

fn unpack(layout: &Path) -> Result<Variant> {
    let image = format!("{}:{}", text(layout)?, images::TAG);
    let bundle = format!("{FOLDER}/bundle");
    Ok(Variant::new("umoci unpack", &["umoci", "unpack", "--image", &image, &bundle]))
}

impl Variant {
    fn new(name: &str, words: &[&str]) -> Self {
        Self { name: name.to_owned(), command: words.iter().map(ToString::to_string).collect() }
    }

    fn command_in(&self, folder: &Path) -> Vec<String> {
        let folder = folder.display().to_string();
        self.command.iter().map(|word| word.replace(FOLDER, &folder)).collect()
    }
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is no UTF-8 path", path.display()))?.to_owned())
}
