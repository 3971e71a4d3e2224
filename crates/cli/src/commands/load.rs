//! `msb load`: images from an archive.

use std::{io, path::PathBuf, sync::Arc};

use microsandbox::image::Image;

use crate::output::{self, pull::PullView};

/// Arguments of `msb load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// OCI layout or archive, or docker-archive; - for standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Name for the image [default: those in the archive]
    #[arg(short, long, value_name = "REFERENCE")]
    tag: Option<String>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Loads them, and says the names and digest of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let view = Arc::new(PullView::new(args.quiet));
    let tag = args.tag.as_deref();
    let images = if args.input.as_os_str() == "-" {
        Image::load_from(io::stdin(), tag, view).await?
    } else {
        Image::load(&args.input, tag, view).await?
    };
    for image in images {
        let digest = image.digest();
        if image.references().is_empty() {
            output::line(&digest)?;
        }
        for reference in image.references() {
            output::line(format_args!("{} {digest}", reference.familiar()))?;
        }
    }
    Ok(())
}
