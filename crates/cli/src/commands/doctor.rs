//! `msb doctor`: what this machine has and lacks.

use std::process::ExitCode;

use microsandbox::doctor::{self, Check, Verdict};
use serde::Serialize;

use crate::output::{self, Format};

/// Arguments of `msb doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to write the findings
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Boot a sandbox as well, and remove it
    #[arg(long)]
    boot: bool,
}

/// A finding.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: &'static str,
    detail: String,
    remedy: Option<String>,
}

impl From<Check> for Finding {
    fn from(check: Check) -> Self {
        let verdict = match check.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        Self { name: check.name, verdict, detail: check.detail, remedy: check.remedy }
    }
}

/// Says what was found; 1 when sandboxes cannot run here.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut checks = doctor::examine()?;
    if args.boot {
        checks.push(doctor::try_boot().await?);
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    let findings: Vec<Finding> = checks.into_iter().map(Finding::from).collect();
    if args.format == Format::Json {
        output::json(&findings)?;
    } else {
        let width = findings.iter().map(|finding| finding.name.len()).max().unwrap_or_default();
        for Finding { name, verdict, detail, remedy } in &findings {
            output::line(format_args!("{verdict:4}  {name:width$}  {detail}"))?;
            if let Some(remedy) = remedy {
                output::line(format_args!("      {:width$}  -> {remedy}", ""))?;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}
