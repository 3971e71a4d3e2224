//! `msb image df`: what takes the space of the store.

use std::time::SystemTime;

use chrono::{DateTime, Utc};
use microsandbox::image::{Image, ImageUsage, StoreUsage};
use serde::Serialize;

use super::{short, shown};
use crate::output::{self, Format, table::Table};

/// Arguments of `msb image df`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to write it
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Usage {
    total_bytes: u64,
    reclaimable_bytes: u64,
    parts: Vec<Part>,
    images: Vec<Entry>,
}

#[derive(Debug, Serialize)]
struct Part {
    part: &'static str,
    count: u64,
    bytes: u64,
    reclaimable_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Entry {
    references: Vec<String>,
    digest: String,
    own_bytes: u64,
    shared_bytes: u64,
    pinned: bool,
    last_used_at: Option<DateTime<Utc>>,
}

impl From<&StoreUsage> for Usage {
    fn from(usage: &StoreUsage) -> Self {
        let parts = usage.parts.iter().map(|part| Part {
            part: part.part.name(),
            count: part.count,
            bytes: part.bytes,
            reclaimable_bytes: part.reclaimable_bytes,
        });
        Self {
            total_bytes: usage.total_bytes,
            reclaimable_bytes: usage.reclaimable_bytes,
            parts: parts.collect(),
            images: usage.images.iter().map(Entry::from).collect(),
        }
    }
}

impl From<&ImageUsage> for Entry {
    fn from(image: &ImageUsage) -> Self {
        Self {
            references: image.references.iter().map(|name| name.familiar()).collect(),
            digest: image.digest.to_string(),
            own_bytes: image.own_bytes,
            shared_bytes: image.shared_bytes,
            pinned: image.is_pinned,
            last_used_at: image.last_used.map(DateTime::from),
        }
    }
}

/// Shows it: images first, then everything by what it is.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let usage = Image::usage().await?;
    if args.format == Format::Json {
        return output::json(&Usage::from(&usage));
    }
    let mut images = Table::new(["REFERENCE", "DIGEST", "OWN", "SHARED", "PINNED", "LAST USED"]);
    for image in &usage.images {
        for name in shown(&image.references) {
            images.row([
                name,
                short(&image.digest.to_string()),
                output::size(image.own_bytes),
                output::size(image.shared_bytes),
                if image.is_pinned { "yes" } else { "no" }.into(),
                image.last_used.map(day_and_time).unwrap_or_default(),
            ]);
        }
    }
    output::line(images)?;
    let mut parts = Table::new(["PART", "COUNT", "SIZE", "RECLAIMABLE"]);
    for part in usage.parts.iter().filter(|part| part.count > 0) {
        parts.row([
            part.part.name().into(),
            part.count.to_string(),
            output::size(part.bytes),
            output::size(part.reclaimable_bytes),
        ]);
    }
    let count: u64 = usage.parts.iter().map(|part| part.count).sum();
    parts.row([
        "total".into(),
        count.to_string(),
        output::size(usage.total_bytes),
        output::size(usage.reclaimable_bytes),
    ]);
    output::line(format_args!("\n{parts}"))
}

fn day_and_time(time: SystemTime) -> String {
    DateTime::<Utc>::from(time).format("%F %R UTC").to_string()
}
