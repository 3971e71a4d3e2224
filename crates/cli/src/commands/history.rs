//! `msb history`: how runs of sandboxes ended, also of those that are gone.

use chrono::{DateTime, SecondsFormat, Utc};
use microsandbox::{EndReason, PastRun, Sandbox};
use serde::Serialize;

use crate::output::{self, Format, table::Table};

/// Arguments of `msb history`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only runs of sandboxes of this name
    name: Option<String>,
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    started_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
    forced: bool,
    end: End,
}

#[derive(Debug, Serialize)]
struct End {
    #[serde(flatten)]
    reason: EndReason,
    message: String,
    console_tail: String,
}

impl From<PastRun> for Entry {
    fn from(run: PastRun) -> Self {
        let message = run.reason.to_string();
        Self {
            name: run.name,
            started_at: run.started_at,
            ended_at: run.ended_at,
            forced: run.forced,
            end: End { reason: run.reason, message, console_tail: run.console_tail },
        }
    }
}

/// Lists them, the latest first.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let runs = match args.name {
        Some(name) => Sandbox::history(&name).await?,
        None => Sandbox::history_of_all().await?,
    };
    let entries: Vec<Entry> = runs.into_iter().map(Entry::from).collect();
    if args.format == Format::Json {
        return output::json(&entries);
    }
    let mut table = Table::new(["NAME", "STARTED", "SECONDS", "END"]);
    for entry in entries {
        table.row([
            entry.name,
            entry.started_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            (entry.ended_at - entry.started_at).num_seconds().to_string(),
            if entry.forced { entry.end.message + " (killed)" } else { entry.end.message },
        ]);
    }
    output::line(table)
}
