//! Scenario `start`: from `create` to a sandbox that has answered, in every way a machine can begin.
//!
//! Each part can be run alone. Ways and peers take turns within a part; a start that did not begin as
//! its row says stops the measurement.

mod gvisor;
mod memory;
mod output;
mod saved;
mod stages;
mod together;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    home::{BenchHome, DEBIAN},
    report::Report,
    templates::{Of, Templates},
};
use crate::cli::StartPart;

/// Runs where none are asked for.
pub(super) const RUNS: usize = 30;

/// A home with an image that has two templates.
#[derive(Debug)]
struct Starts {
    home: BenchHome,
    templates: Templates,
}

/// How a machine begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Cold,
    ColdUnconfined,
    Template,
    ImageTemplate,
}

/// Those that users meet.
const WAYS: [Way; 3] = [Way::Cold, Way::Template, Way::ImageTemplate];

/// The parts, all of them where none is named.
pub(super) fn run(parts: &[StartPart], runs: usize) -> Result<Vec<Report>> {
    let home = BenchHome::prepare_in("bench-start-home")?;
    home.msb().args(["rm", "-f", "--all"]).output()?;
    home.load_debian()?;
    let templates = Templates::ensure(&home, DEBIAN)?;
    let starts = Starts { home, templates };
    let mut reports = Vec::new();
    for part in [
        StartPart::Stages,
        StartPart::Output,
        StartPart::Together,
        StartPart::Memory,
        StartPart::Snapshots,
        StartPart::Forks,
    ] {
        if !parts.is_empty() && !parts.contains(&part) {
            continue;
        }
        reports.extend(match part {
            StartPart::Stages => stages::run(&starts, runs)?,
            StartPart::Output => output::run(&starts, runs)?,
            StartPart::Together => together::run(&starts, runs)?,
            StartPart::Memory => memory::run(&starts)?,
            StartPart::Snapshots => saved::snapshots(&starts, runs)?,
            StartPart::Forks => saved::forks(&starts, runs)?,
        });
    }
    Ok(reports)
}

impl Starts {
    fn report(&self, scenario: impl Into<String>, unit: &'static str) -> Report {
        Report::new(scenario, unit, self.home.kernel.clone())
    }

    /// Has the next starts begin that way; gives the variables that go with it.
    fn choose(&self, way: Way) -> Result<&'static [(&'static str, &'static str)]> {
        Ok(match way {
            Way::Cold => &[("MSB_BOOT", "cold")],
            Way::ColdUnconfined => &[("MSB_BOOT", "cold"), ("MSB_CONFINEMENT", "off")],
            Way::Template => self.templates.choose(Of::Machine).map(|()| &[][..])?,
            Way::ImageTemplate => self.templates.choose(Of::Image).map(|()| &[][..])?,
        })
    }

    /// The record of a sandbox's run, which must have begun that way.
    fn record(&self, sandbox: &str, way: Way) -> Result<Value> {
        let run = self.home.record(sandbox)?;
        let checked = match way {
            Way::Template => self.templates.check(Of::Machine, &run),
            Way::ImageTemplate => self.templates.check(Of::Image, &run),
            Way::Cold | Way::ColdUnconfined => Ok(()),
        };
        checked.with_context(|| format!("start {sandbox} {}", way.name()))?;
        Ok(run)
    }

    fn remove(&self, sandboxes: &[&str]) -> Result<()> {
        self.home.msb().args(["rm", "-f"]).args(sandboxes).output().map(drop)
    }
}

impl Way {
    const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::ColdUnconfined => "cold unconfined",
            Self::Template => "template",
            Self::ImageTemplate => "image template",
        }
    }
}
