//! What a scenario found: samples of each variant, as a table and as JSON lines.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use anyhow::{Context as _, Result};
use serde_json::json;

use crate::{process::Tool, terminal, workspace};

/// Samples of every variant of one scenario. The first variant is the reference of the ratios.
#[derive(Debug)]
pub(super) struct Report {
    scenario: String,
    /// What the samples count, e.g. `s`.
    unit: &'static str,
    /// Kernel that was booted, or that everything ran on, as it calls itself.
    kernel: String,
    variants: Vec<Variant>,
}

#[derive(Debug)]
struct Variant {
    name: String,
    samples: Vec<f64>,
}

impl Report {
    /// A report without samples.
    pub(super) fn new(scenario: impl Into<String>, unit: &'static str, kernel: String) -> Self {
        Self { scenario: scenario.into(), unit, kernel, variants: Vec::new() }
    }

    /// Adds one sample, in the order of the runs.
    pub(super) fn add(&mut self, variant: &str, sample: f64) {
        match self.variants.iter_mut().find(|known| known.name == variant) {
            Some(known) => known.samples.push(sample),
            None => self.variants.push(Variant { name: variant.to_owned(), samples: vec![sample] }),
        }
    }

    /// Prints the table.
    pub(super) fn show(&self) {
        terminal::result(format_args!("{} in {}, {}", self.scenario, self.unit, self.kernel));
        terminal::result("   median       min       p95       p99    n    ratio  variant");
        let reference = self.variants.first().map_or(f64::NAN, |first| first.quantile(0.5));
        for variant in &self.variants {
            let [median, min, p95, p99] = [0.5, 0.0, 0.95, 0.99].map(|q| variant.quantile(q));
            terminal::result(format_args!(
                "{median:9.3} {min:9.3} {p95:9.3} {p99:9.3}{:5}{:9.2}  {}",
                variant.samples.len(),
                median / reference,
                variant.name,
            ));
        }
    }

    /// Appends one JSON line for each variant.
    pub(super) fn append_to(&self, path: &Path) -> Result<()> {
        let what = || format!("write {}", path.display());
        let mut file = File::options().create(true).append(true).open(path).with_context(what)?;
        let commit = Tool::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12"])
            .in_dir(workspace::root())
            .output()?;
        let cpu = cpu()?;
        for variant in &self.variants {
            let line = json!({
                "scenario": self.scenario,
                "variant": variant.name,
                "unit": self.unit,
                "samples": variant.samples,
                "commit": commit,
                "cpu": cpu,
                "kernel": self.kernel,
            });
            writeln!(file, "{line}").with_context(what)?;
        }
        Ok(())
    }
}

impl Variant {
    /// The sample below which a share `q` of the samples lies (nearest rank).
    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let below = sorted.iter().enumerate().filter(|(index, _)| share(*index, sorted.len()) < q);
        let rank = below.count().min(sorted.len().saturating_sub(1));
        sorted.get(rank).copied().unwrap_or(f64::NAN)
    }
}

/// Share of the samples that lie at or below the one at `index` of the sorted list.
fn share(index: usize, len: usize) -> f64 {
    let as_float = |count: usize| u32::try_from(count).map_or(f64::INFINITY, f64::from);
    as_float(index + 1) / as_float(len)
}

/// The host's processor, by name and count.
fn cpu() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
    let names: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("model name"))
        .filter_map(|line| Some(line.split_once(':')?.1.trim()))
        .collect();
    Ok(format!("{} x {}", names.len(), names.first().unwrap_or(&"unknown processor")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantile_is_the_sample_of_that_rank() {
        let variant = |samples: &[f64]| Variant { name: String::new(), samples: samples.to_vec() };
        for (samples, q, expected) in [
            (&[3.0, 1.0, 2.0][..], 0.5, 2.0),
            (&[3.0, 1.0, 2.0], 0.0, 1.0),
            (&[3.0, 1.0, 2.0], 0.95, 3.0),
            (&[1.0, 2.0, 3.0, 4.0], 0.5, 2.0),
            (&[7.0], 0.5, 7.0),
        ] {
            let found = variant(samples).quantile(q);
            assert!((found - expected).abs() < f64::EPSILON, "{samples:?} at {q}: {found}");
        }
        assert!(variant(&[]).quantile(0.5).is_nan());
    }

    #[test]
    fn json_line_has_every_field_and_lines_accumulate() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("results.json");
        let mut report = Report::new("boot", "s", "6.12".to_owned());
        report.add("raw", 0.5);
        report.add("msb", 0.75);
        report.append_to(&file).unwrap();
        report.append_to(&file).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().count(), 4);
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            for field in ["scenario", "variant", "unit", "samples", "commit", "cpu", "kernel"] {
                assert!(!line[field].is_null(), "{field} in {line}");
            }
        }
    }
}
