//! `msb snapshot inspect`: all that is known of a snapshot. The fields are in `docs/cli.md`.

use std::{collections::BTreeMap, path::PathBuf};

use chrono::{DateTime, Utc};
use microsandbox::Snapshot;
use serde::Serialize;

use crate::output;

/// Arguments of `msb snapshot inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshot: a name, an id or a path
    snapshot: PathBuf,
}

#[derive(Debug, Serialize)]
struct Inspection<'a> {
    name: &'a str,
    id: String,
    directory: PathBuf,
    created_at: DateTime<Utc>,
    source_sandbox: &'a str,
    image: &'a str,
    manifest_digest: &'a str,
    full: bool,
    cpus: u8,
    memory_mib: u32,
    size_bytes: u64,
    stored_bytes: u64,
    labels: &'a BTreeMap<String, String>,
}

/// Shows it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let snapshot = Snapshot::open(&args.snapshot)?;
    output::json(&Inspection {
        name: snapshot.name(),
        id: snapshot.id(),
        directory: std::path::absolute(snapshot.path())?,
        created_at: snapshot.created_at(),
        source_sandbox: snapshot.source_sandbox(),
        image: snapshot.image_reference(),
        manifest_digest: snapshot.manifest_digest(),
        full: snapshot.is_full(),
        cpus: snapshot.cpus(),
        memory_mib: snapshot.memory_mib(),
        size_bytes: snapshot.size_bytes(),
        stored_bytes: snapshot.stored_bytes()?,
        labels: snapshot.labels(),
    })
}
