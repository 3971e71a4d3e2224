//! `msb save`: images to an archive.

use std::{io, io::IsTerminal, path::PathBuf};

use clap::ValueEnum;
use microsandbox::image::{ArchiveFormat, Image, LayerCompression, SaveOptions};

/// Arguments of `msb save`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of the images, which the archive keeps
    #[arg(required = true, value_name = "REFERENCE")]
    references: Vec<String>,
    /// File to write, or directory for a layout; - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Oci)]
    format: Format,
    /// How to compress layers; those of a docker-archive never are
    #[arg(long, value_enum, default_value_t = Compression::Gzip)]
    compression: Compression,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// An OCI layout in a tar archive
    Oci,
    /// An OCI layout as a directory
    OciLayout,
    /// What `docker save` writes
    Docker,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compression {
    /// As every engine reads
    Gzip,
    /// Faster and smaller; engines from 2021 on
    Zstd,
    /// Not at all
    None,
}

/// Saves them; says nothing where that works.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let references: Vec<&str> = args.references.iter().map(String::as_str).collect();
    let options = SaveOptions::default()
        .with_format(match args.format {
            Format::Docker => ArchiveFormat::Docker,
            Format::Oci => ArchiveFormat::Oci,
            Format::OciLayout => ArchiveFormat::OciLayout,
        })
        .with_compression(match args.compression {
            Compression::Gzip => LayerCompression::Gzip,
            Compression::None => LayerCompression::None,
            Compression::Zstd => LayerCompression::Zstd,
        });
    if args.output.as_os_str() == "-" {
        anyhow::ensure!(!io::stdout().is_terminal(), "an archive is nothing for a terminal");
        return Ok(Image::save_to(&references, io::stdout(), options).await?);
    }
    Ok(Image::save(&references, &args.output, options).await?)
}
