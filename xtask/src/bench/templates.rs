//! The templates that starts of one image go on from, and a choice between them.
//!
//! A start takes the best template there is. To measure those from the machine's template, the image's
//! is put aside meanwhile, and noted as one that failed: else the next start would have it built again
//! (`docs/formats/checkpoint.md`).

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::home::BenchHome;
use crate::terminal;

/// What starts go on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    /// A machine that was told nothing yet.
    Machine,
    /// One with the root of the image mounted.
    Image,
}

/// Both templates of an image.
#[derive(Debug)]
pub(crate) struct Templates {
    folder: PathBuf,
    machine: String,
    image: String,
}

/// Longest that a build may take: it has the processor time that nobody else wants.
const WITHIN: Duration = Duration::from_secs(180);

const LOOK_AGAIN: Duration = Duration::from_millis(50);

const SANDBOX: &str = "bench-templates";
const FAILED: &str = "failed.json";
const ASIDE: &str = "aside";

impl Templates {
    /// Has both built, where they are not there, by starts of `image`.
    pub(crate) fn ensure(home: &BenchHome, image: &str) -> Result<Self> {
        let folder = home.installed.home.join("templates");
        show_all(&folder)?;
        home.msb().args(["rm", "-f", SANDBOX]).succeeds()?;
        let mut found = Self { folder, machine: String::new(), image: String::new() };
        // At most: a cold start, one from the machine's template, one from the image's.
        for _ in 0..3 {
            let before = built(&found.folder)?;
            home.msb().args(["create", "-q", "--name", SANDBOX, image]).output()?;
            let origin = home.record(SANDBOX)?["origin"].take();
            home.msb().args(["rm", "-f", SANDBOX]).output()?;
            let key = origin["key"].as_str().unwrap_or_default().to_owned();
            match origin["kind"].as_str() {
                Some("template") => found.machine = key,
                Some("image_template") => {
                    found.image = key;
                    found.note_failure()?;
                    found.choose(Of::Machine)?;
                }
                _ => {}
            }
            if !found.machine.is_empty() && !found.image.is_empty() {
                return Ok(found);
            }
            if found.image.is_empty() {
                terminal::note("a template is being built");
                wait_for_another(&found.folder, &before)?;
            }
        }
        bail!("three starts of {image} have not led to its templates")
    }

    /// Starts go on from that one from now on.
    pub(crate) fn choose(&self, of: Of) -> Result<()> {
        let shown = self.folder.join(&self.image);
        let aside = shown.with_extension(ASIDE);
        let (from, to) = match of {
            Of::Machine => (&shown, &aside),
            Of::Image => (&aside, &shown),
        };
        rename_if_there(from, to)
    }

    /// Fails unless a run, as its record has it, went on from that one.
    pub(crate) fn check(&self, of: Of, run: &Value) -> Result<()> {
        let (kind, key) = match of {
            Of::Machine => ("template", &self.machine),
            Of::Image => ("image_template", &self.image),
        };
        let origin = &run["origin"];
        ensure!(
            origin["kind"] == kind && origin["key"] == key.as_str(),
            "it began as {origin}, not from the {kind} {key}"
        );
        Ok(())
    }

    /// Says of the image's template that it failed.
    fn note_failure(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?;
        let at = json!({ "secs_since_epoch": now.as_secs(), "nanos_since_epoch": 0 });
        let failure = json!({ "key": self.image, "at": at, "why": "it is put aside" });
        let path = self.folder.join(FAILED);
        fs::write(&path, failure.to_string()).with_context(|| format!("write {}", path.display()))
    }
}

/// Takes back what a run before has put aside.
fn show_all(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if path.extension().is_some_and(|extension| extension == ASIDE) {
            rename_if_there(&path, &path.with_extension(""))?;
        }
    }
    match fs::remove_file(folder.join(FAILED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).context("forget a failed template")
        }
        _ => Ok(()),
    }
}

/// The templates that are there; one that is being built has an extension.
fn built(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut built = entries(folder)?;
    built.retain(|path| path.extension().is_none() && path.is_dir());
    Ok(built)
}

fn entries(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error).with_context(|| format!("list {}", folder.display())),
    }
}

fn wait_for_another(folder: &Path, before: &BTreeSet<PathBuf>) -> Result<()> {
    let deadline = Instant::now() + WITHIN;
    // Nobody tells of the end of a build.
    let (_nobody, nothing) = mpsc::channel::<()>();
    while built(folder)?.is_subset(before) {
        if let Ok(why) = fs::read_to_string(folder.join(FAILED)) {
            bail!("a template could not be built: {why}");
        }
        let log = || fs::read_to_string(folder.join("build.log")).unwrap_or_default();
        ensure!(Instant::now() < deadline, "no template came: {}", log());
        nothing.recv_timeout(LOOK_AGAIN).ok();
    }
    Ok(())
}

fn rename_if_there(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("rename {}", from.display()))
        }
        _ => Ok(()),
    }
}
