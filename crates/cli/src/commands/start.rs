//! `msb start`: sandboxes that were stopped, running again with the disk they had.

use microsandbox::SandboxHandle;

use crate::{
    boot,
    selection::{Missing, Selection},
};

/// Arguments of `msb start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Show no notes
    #[arg(short, long)]
    quiet: bool,
}

/// Starts them one after the other, and says the name of each that runs.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut quiet = args.quiet;
    let start = async |sandbox: SandboxHandle| boot::start(&sandbox, &mut quiet).await;
    args.selection.each(Missing::Fail, |sandbox| !sandbox.status().is_alive(), start).await
}
