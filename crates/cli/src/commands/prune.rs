//! `msb prune`: removes sandboxes that do not run.

use microsandbox::{Sandbox, SandboxFilter};

use crate::{output, values};

/// Arguments of `msb prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only those with this label; several must all match
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
}

/// Removes them, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let removed = Sandbox::prune(SandboxFilter::new().labels(args.label)).await?;
    removed.iter().try_for_each(output::line)
}
