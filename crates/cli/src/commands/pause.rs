//! `msb pause`: sandboxes stand still.

use microsandbox::{SandboxHandle, SandboxStatus};

use crate::selection::{Missing, Selection};

/// Arguments of `msb pause`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
}

/// Pauses them one after the other, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let pause = async |sandbox: SandboxHandle| Ok(sandbox.pause().await?);
    let runs = |sandbox: &SandboxHandle| sandbox.status() == SandboxStatus::Running;
    args.selection.each(Missing::Fail, runs, pause).await
}
