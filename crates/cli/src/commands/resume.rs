//! `msb resume`: sandboxes that stand still go on.

use microsandbox::{SandboxHandle, SandboxStatus};

use crate::selection::{Missing, Selection};

/// Arguments of `msb resume`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
}

/// Resumes them one after the other, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let resume = async |sandbox: SandboxHandle| Ok(sandbox.resume().await?);
    let stands = |sandbox: &SandboxHandle| sandbox.status() == SandboxStatus::Paused;
    args.selection.each(Missing::Fail, stands, resume).await
}
