//! `msb image gc`: removes what nothing needs, and more where the store has to shrink.

use microsandbox::image::Image;
use serde::Serialize;

use crate::{
    output::{self, Format},
    values,
};

/// Arguments of `msb image gc`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Then remove images that no sandbox needs, the least recently used first, until the store
    /// takes no more than this
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    max_size: Option<u64>,
    /// How to write what was done
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Serialize)]
struct Report {
    images: usize,
    layers: usize,
    freed_bytes: u64,
}

/// Collects, and says what was removed.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let collected = match args.max_size {
        Some(max_bytes) => Image::shrink(max_bytes).await?,
        None => Image::collect().await?,
    };
    if collected.postponed {
        anyhow::bail!("nothing was removed: an image is being pulled, loaded or saved");
    }
    let report = Report {
        images: collected.images,
        layers: collected.layers,
        freed_bytes: collected.freed_bytes,
    };
    match args.format {
        Format::Json => output::json(&report),
        Format::Table => output::line(format_args!(
            "removed {} images and {} layers, freed {}",
            report.images,
            report.layers,
            output::size(report.freed_bytes)
        )),
    }
}
