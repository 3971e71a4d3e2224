//! `msb load`: images from an archive, or from a root directory.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use microsandbox::image::{Image, ImageConfig};

use crate::output::{self, pull::PullView};

/// Arguments of `msb load`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// OCI layout or archive, docker-archive, or root directory; - for an archive on standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Name for the image [default: those in the archive]
    #[arg(short, long, value_name = "REFERENCE")]
    tag: Option<String>,
    #[command(flatten)]
    rootfs: Rootfs,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

/// What an image made from a root directory wants; archives say it themselves.
#[derive(Debug, clap::Args)]
#[group(multiple = true)]
struct Rootfs {
    /// Take the directory for a root directory even if it looks like a layout
    #[arg(long)]
    rootfs: bool,
    /// Environment of an image from a root directory: NAME=VALUE; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// Working directory of an image from a root directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User of an image from a root directory
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Command of an image from a root directory
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Rootfs {
    /// Whether something was said that an archive has no use for.
    fn is_meant(&self) -> bool {
        let Self { rootfs, env, workdir, user, command } = self;
        let says = !env.is_empty() || workdir.is_some() || user.is_some() || !command.is_empty();
        *rootfs || says
    }

    fn into_config(self) -> ImageConfig {
        let mut config = ImageConfig::default();
        config.env = self.env;
        config.working_dir = self.workdir;
        config.user = self.user;
        config.cmd = self.command;
        config
    }
}

/// Loads them, and says the names and digest of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let Args { input, tag, rootfs, quiet } = args;
    let view = Arc::new(PullView::new(quiet));
    let images = if input.as_os_str() == "-" {
        anyhow::ensure!(!rootfs.is_meant(), "a root directory cannot come from standard input");
        Image::load_from(io::stdin(), tag.as_deref(), view).await?
    } else if rootfs.rootfs || (input.is_dir() && !is_layout(&input)) {
        let tag = tag.context("an image from a root directory needs a name: --tag")?;
        vec![Image::load_directory(&input, &tag, rootfs.into_config(), view).await?]
    } else {
        anyhow::ensure!(!rootfs.is_meant(), "{} is no root directory", input.display());
        Image::load(&input, tag.as_deref(), view).await?
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

/// Whether a directory has the file that every layout, and every unpacked docker-archive, has.
fn is_layout(directory: &Path) -> bool {
    ["oci-layout", "index.json", "manifest.json"].iter().any(|name| directory.join(name).is_file())
}
