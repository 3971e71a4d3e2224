//! `msb restart`: sandboxes ended in order and started again; stopped ones are just started.

use microsandbox::SandboxHandle;

use crate::{
    boot,
    commands::stop::stop_within,
    selection::{Grace, Missing, Selection},
};

/// Arguments of `msb restart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grace: Grace,
    /// Show no notes
    #[arg(short, long)]
    quiet: bool,
}

/// Restarts them one after the other, and says the name of each that runs.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut quiet = args.quiet;
    let restart = async |sandbox: SandboxHandle| {
        stop_within(&sandbox, args.grace.time).await?;
        boot::start(&sandbox, &mut quiet).await
    };
    args.selection.each(Missing::Fail, |_| true, restart).await
}
