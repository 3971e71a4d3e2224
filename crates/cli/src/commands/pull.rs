//! `msb pull`: an image from its registry.

use microsandbox::{PullPolicy, image::Image};

use crate::{
    commands::image::name_and_digest,
    output::{self, pull::PullView},
};

/// Arguments of `msb pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image, as Docker names it: python, debian:12, 127.0.0.1:5000/team/app
    reference: String,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// Asks the registry what the name stands for now, fetches what is missing, and says both.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let view = PullView::new(args.quiet);
    let image = Image::pull(&args.reference, PullPolicy::Always, &view).await?;
    drop(view);
    output::line(name_and_digest(&args.reference, &image))
}
