//! `msb ls`: the sandboxes there are.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use microsandbox::{RootfsSource, Sandbox, SandboxFilter, SandboxHandle, SandboxStatus};
use serde::Serialize;

use crate::{
    output::{self, Format, table::Table},
    values,
};

/// Arguments of `msb ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
    /// Only those with this label; several must all match
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
}

/// A sandbox in the list.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    status: SandboxStatus,
    image: String,
    cpus: u8,
    memory_mib: u32,
    labels: BTreeMap<String, String>,
    created_at: Option<DateTime<Utc>>,
}

impl Entry {
    fn new(handle: &SandboxHandle) -> anyhow::Result<Self> {
        let config = handle.config()?;
        let RootfsSource::Oci(image) = config.image;
        Ok(Self {
            name: config.name,
            status: handle.status(),
            image: image.reference,
            cpus: config.cpus,
            memory_mib: config.memory_mib,
            labels: config.labels,
            created_at: handle.created_at(),
        })
    }
}

/// Lists them, ordered by name.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let handles = Sandbox::list_with(SandboxFilter::new().labels(args.label)).await?;
    if args.quiet {
        return handles.iter().try_for_each(|handle| output::line(handle.name()));
    }
    let entries: anyhow::Result<Vec<Entry>> = handles.iter().map(Entry::new).collect();
    let entries = entries?;
    if args.format == Format::Json {
        return output::json(&entries);
    }
    let mut table = Table::new(["NAME", "STATUS", "IMAGE", "CPUS", "MEMORY", "CREATED"]);
    for entry in entries {
        table.row([
            entry.name,
            format!("{:?}", entry.status).to_lowercase(),
            entry.image,
            entry.cpus.to_string(),
            format!("{} MiB", entry.memory_mib),
            entry.created_at.map_or_else(String::new, |at| age(Utc::now(), at)),
        ]);
    }
    output::line(table)
}

/// How long ago that was, in its largest unit.
fn age(now: DateTime<Utc>, then: DateTime<Utc>) -> String {
    let seconds = (now - then).num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn age_is_told_in_the_largest_unit_and_never_negative() {
        let now = Utc::now();
        for (seconds, text) in [
            (-5, "0 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7200, "2 h ago"),
            (172_800, "2 d ago"),
        ] {
            assert_eq!(age(now, now - TimeDelta::seconds(seconds)), text);
        }
    }
}
