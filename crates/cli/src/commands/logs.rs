//! `msb logs`: what a sandbox's commands wrote, what its console and its supervisor said.

use std::io::{self, Write};

use base64::{Engine, engine::general_purpose::STANDARD};
use chrono::{DateTime, SecondsFormat, Utc};
use clap::ValueEnum;
use microsandbox::{LogEntry, LogOptions, LogSource, LogStreamOptions, Sandbox};
use serde_json::json;

use crate::{output, report, values};

/// Arguments of `msb logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
    /// Go on with what comes until the sandbox ends
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines, so many
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
    /// Only what came since then: a time such as 2026-01-02T03:04:05Z, or so long ago, such as 10m
    #[arg(long, value_name = "TIME", value_parser = values::since)]
    since: Option<DateTime<Utc>>,
    /// Which logs; several with commas [default: stdout,stderr]
    #[arg(long, value_enum, value_delimiter = ',')]
    source: Vec<Source>,
    /// How to write them
    #[arg(long, value_enum, default_value_t = Format::Raw)]
    format: Format,
}

/// The logs there are.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Source {
    /// Standard output of commands, or their terminals
    Stdout,
    /// Standard error of commands
    Stderr,
    /// The guest's console
    Kernel,
    /// The supervisor and the VMM
    Runtime,
}

impl From<Source> for LogSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Stdout => Self::Stdout,
            Source::Stderr => Self::Stderr,
            Source::Kernel => Self::Kernel,
            Source::Runtime => Self::Runtime,
        }
    }
}

/// How to write entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Byte for byte, standard error of commands to standard error
    Raw,
    /// A line of JSON each; see docs/cli.md
    Json,
}

/// Shows logs. One that was never written is empty.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let sandbox = Sandbox::get(&args.name).await?;
    let Args { tail, since, format, .. } = args;
    let sources = args.source.into_iter().map(LogSource::from).collect();
    if !args.follow {
        let options = LogOptions { tail, since, until: None, sources };
        let entries = sandbox.logs(&options).await?;
        return entries.iter().try_for_each(|entry| show(entry, format));
    }
    let mut stream = sandbox.log_stream(&LogStreamOptions { tail, since, sources }).await?;
    while let Some(entry) = stream.recv().await? {
        show(&entry, format)?;
    }
    Ok(())
}

fn show(entry: &LogEntry, format: Format) -> anyhow::Result<()> {
    match (format, entry.missing) {
        (Format::Json, _) => output::written(writeln!(io::stdout(), "{}", as_json(entry))),
        (Format::Raw, Some(0)) => {
            report::note("a part of the log is missing here");
            Ok(())
        }
        (Format::Raw, Some(bytes)) => {
            report::note(format_args!("{bytes} bytes are missing here"));
            Ok(())
        }
        (Format::Raw, None) if entry.source == LogSource::Stderr => {
            output::written(io::stderr().write_all(&entry.data))
        }
        (Format::Raw, None) => {
            let mut stdout = io::stdout().lock();
            // At once: a prompt has no line end.
            output::written(stdout.write_all(&entry.data).and_then(|()| stdout.flush()))
        }
    }
}

fn as_json(entry: &LogEntry) -> serde_json::Value {
    let (text, base64) = match str::from_utf8(&entry.data) {
        _ if entry.missing.is_some() => (None, None),
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(STANDARD.encode(&entry.data))),
    };
    json!({
        "time": entry.time.map(|time| time.to_rfc3339_opts(SecondsFormat::Micros, true)),
        "source": match entry.source {
            LogSource::Kernel => "kernel",
            LogSource::Runtime => "runtime",
            LogSource::Stderr => "stderr",
            LogSource::Stdout => "stdout",
            _ => "other",
        },
        "exec": entry.exec,
        "text": text,
        "base64": base64,
        "missing_bytes": entry.missing,
    })
}
