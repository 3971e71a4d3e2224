//! `msb image ls`: the images there are.

use microsandbox::image::Image;
use serde::Serialize;

use super::{short, shown};
use crate::output::{self, Format, table::Table};

/// Arguments of `msb image ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

/// An image in the list.
#[derive(Debug, Serialize)]
struct Entry {
    references: Vec<String>,
    digest: String,
    platform: String,
    layers: usize,
    size_bytes: u64,
}

impl From<&Image> for Entry {
    fn from(image: &Image) -> Self {
        Self {
            references: image.references().iter().map(|name| name.familiar()).collect(),
            digest: image.digest(),
            platform: image.platform(),
            layers: image.layer_count(),
            size_bytes: image.size_bytes(),
        }
    }
}

/// Lists them.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let images = Image::list()?;
    if args.quiet {
        let names = images.iter().flat_map(Image::references);
        return names.map(|name| name.familiar()).try_for_each(output::line);
    }
    if args.format == Format::Json {
        return output::json(&images.iter().map(Entry::from).collect::<Vec<_>>());
    }
    let mut table = Table::new(["REFERENCE", "DIGEST", "PLATFORM", "LAYERS", "SIZE"]);
    for image in &images {
        for name in shown(image.references()) {
            table.row([
                name,
                short(&image.digest()),
                image.platform(),
                image.layer_count().to_string(),
                output::size(image.size_bytes()),
            ]);
        }
    }
    output::line(table)
}
