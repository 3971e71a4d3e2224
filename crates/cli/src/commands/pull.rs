//! `msb pull`: an image from its registry.

use std::path::PathBuf;

use microsandbox::{
    PullPolicy,
    image::{Image, Mirror, Network, Platform, PullOptions, pull_options},
};

use crate::output::{self, pull::PullView};

/// Arguments of `msb pull`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Image, as Docker names it: python, debian:12, 127.0.0.1:5000/team/app
    reference: String,
    /// Platform to fetch where several are offered [default: this machine's]
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<Platform>,
    /// Never touch the network: succeed with what is in the store, or fail
    #[arg(long)]
    offline: bool,
    /// Registry that needs neither encryption nor a valid certificate; may be repeated
    #[arg(long, value_name = "HOST")]
    insecure: Vec<String>,
    /// File with certificates of authorities to trust besides the system's (PEM); may be repeated
    #[arg(long, value_name = "FILE")]
    ca_cert: Vec<PathBuf>,
    /// URL of a host to ask before a registry, such as docker.io; may be repeated
    #[arg(long, value_name = "REGISTRY=URL")]
    mirror: Vec<Mirror>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

impl Args {
    /// What the environment says, and what was said here after it.
    fn options(&self) -> anyhow::Result<PullOptions> {
        let mut options = pull_options()?;
        if let Some(platform) = &self.platform {
            options = options.with_platform(platform.clone());
        }
        if self.offline {
            options = options.with_network(Network::Offline);
        }
        let options = self.insecure.iter().fold(options, PullOptions::with_insecure_host);
        let options = self.ca_cert.iter().fold(options, PullOptions::with_ca_file);
        Ok(self.mirror.iter().cloned().fold(options, PullOptions::with_mirror))
    }
}

/// Asks the registry what the name stands for now, fetches what is missing, and says both.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let options = args.options()?;
    let view = PullView::new(args.quiet);
    let image = Image::pull_with(&args.reference, PullPolicy::Always, options, &view).await?;
    drop(view);
    output::line(output::name_and_digest(&args.reference, &image))
}
