//! `msb image`: the images in the store.

use microsandbox::image::Image;
use serde::Serialize;

use crate::output::{self, Format, table::Table};

/// Commands on images.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the images in the store.
    Ls(LsArgs),
    /// Take names away, and images that no name and no sandbox needs.
    Rm(RmArgs),
}

/// Arguments of `msb image ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct LsArgs {
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Names only
    #[arg(short, long)]
    quiet: bool,
}

/// Arguments of `msb image rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Names of the images
    #[arg(required = true, value_name = "REFERENCE")]
    references: Vec<String>,
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

/// Lists or removes.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Ls(args) => list(&args),
        Command::Rm(args) => remove(args).await,
    }
}

/// The line that says what a name stands for.
pub(crate) fn name_and_digest(name: &str, image: &Image) -> String {
    let parsed: Option<microsandbox::Reference> = name.parse().ok();
    let name = parsed.map_or_else(|| name.to_owned(), |reference| reference.familiar());
    format!("{name} {}", image.digest())
}

fn list(args: &LsArgs) -> anyhow::Result<()> {
    let images = Image::list()?;
    let entries: Vec<Entry> = images.iter().map(Entry::from).collect();
    if args.quiet {
        return entries.iter().flat_map(|entry| &entry.references).try_for_each(output::line);
    }
    if args.format == Format::Json {
        return output::json(&entries);
    }
    let mut table = Table::new(["REFERENCE", "DIGEST", "PLATFORM", "LAYERS", "SIZE"]);
    for entry in entries {
        let mut names = entry.references;
        if names.is_empty() {
            names.push("<none>".into());
        }
        for name in names {
            table.row([
                name,
                short(&entry.digest),
                entry.platform.clone(),
                entry.layers.to_string(),
                output::size(entry.size_bytes),
            ]);
        }
    }
    output::line(table)
}

/// Hexadecimal digits of a digest that a person needs to tell images apart.
const DIGITS: usize = 12;

fn short(digest: &str) -> String {
    digest.split_once(':').map_or(digest, |(_, hex)| hex).chars().take(DIGITS).collect()
}

async fn remove(args: RmArgs) -> anyhow::Result<()> {
    for reference in &args.references {
        let freed = Image::remove(reference).await?;
        output::line(format_args!("{reference}: freed {}", output::size(freed)))?;
    }
    Ok(())
}
