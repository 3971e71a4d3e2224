//! `msb snapshot ls`: the snapshots there are.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use microsandbox::Snapshot;
use serde::Serialize;

use crate::output::{self, Format, table::Table};

/// Arguments of `msb snapshot ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
    /// List those in this directory and not in the home
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A snapshot in the list.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    name: &'a str,
    id: String,
    created_at: DateTime<Utc>,
    source_sandbox: &'a str,
    image: &'a str,
    full: bool,
    size_bytes: u64,
    stored_bytes: u64,
}

/// Lists them.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let snapshots = match &args.dir {
        Some(path) => Snapshot::list_dir(path)?,
        None => Snapshot::list()?,
    };
    if args.quiet {
        return snapshots.iter().map(Snapshot::name).try_for_each(output::line);
    }
    let entry = |snapshot| Ok(Entry::new(snapshot)?);
    let entries: Vec<Entry<'_>> = snapshots.iter().map(entry).collect::<anyhow::Result<_>>()?;
    if args.format == Format::Json {
        return output::json(&entries);
    }
    let mut table = Table::new(["NAME", "SANDBOX", "IMAGE", "KIND", "CREATED", "DISK", "STORED"]);
    for entry in entries {
        table.row([
            entry.name.to_owned(),
            entry.source_sandbox.to_owned(),
            output::familiar(entry.image),
            if entry.full { "full" } else { "disk" }.into(),
            entry.created_at.format("%F %R UTC").to_string(),
            output::size(entry.size_bytes),
            output::size(entry.stored_bytes),
        ]);
    }
    output::line(table)
}

impl<'a> Entry<'a> {
    fn new(snapshot: &'a Snapshot) -> microsandbox::MicrosandboxResult<Self> {
        Ok(Self {
            name: snapshot.name(),
            id: snapshot.id(),
            created_at: snapshot.created_at(),
            source_sandbox: snapshot.source_sandbox(),
            image: snapshot.image_reference(),
            full: snapshot.is_full(),
            size_bytes: snapshot.size_bytes(),
            stored_bytes: snapshot.stored_bytes()?,
        })
    }
}
