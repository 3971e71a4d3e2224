//! `msb image tag` and `msb image rm`: names of images.

use microsandbox::image::Image;

use crate::{output, report};

/// Arguments of `msb image tag`.
#[derive(Debug, clap::Args)]
pub(crate) struct TagArgs {
    /// Image, by any of its names
    reference: String,
    /// Its further name
    name: String,
}

/// Arguments of `msb image rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Names of the images
    #[arg(required = true, value_name = "REFERENCE")]
    references: Vec<String>,
}

/// Names an image, and says what the name stands for.
pub(crate) fn tag(args: &TagArgs) -> anyhow::Result<()> {
    let image = Image::tag(&args.reference, &args.name)?;
    output::line(output::name_and_digest(&args.name, &image))
}

/// Removes names, and says what each removal freed.
pub(crate) async fn remove(args: RmArgs) -> anyhow::Result<()> {
    for reference in &args.references {
        let collected = Image::remove(reference).await?;
        if collected.postponed {
            report::note("an image is being made: `msb image gc` frees the space later");
        }
        let freed = output::size(collected.freed_bytes);
        output::line(format_args!("{}: freed {freed}", output::familiar(reference)))?;
    }
    Ok(())
}
