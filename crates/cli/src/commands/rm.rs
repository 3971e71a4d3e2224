//! `msb rm`: the end of sandboxes and all they had.

use crate::selection::{Missing, Selection};

/// Arguments of `msb rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Kill those that run, and pass over those that do not exist
    #[arg(short, long)]
    force: bool,
}

/// Removes them one after the other, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let missing = if args.force { Missing::PassOver } else { Missing::Fail };
    let remove = async |sandbox: microsandbox::SandboxHandle| {
        if args.force {
            sandbox.kill().await?;
        }
        Ok(sandbox.remove().await?)
    };
    args.selection.each(missing, |_| true, remove).await
}
