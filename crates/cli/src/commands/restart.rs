//! `msb restart`: sandboxes ended in order and started again; stopped ones are just started.

use std::time::Duration;

use crate::{
    boot,
    selection::{Missing, Selection},
    values,
};

/// Arguments of `msb restart`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    /// Time to end in order, after which a sandbox is killed
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
    time: Duration,
    /// Show no notes
    #[arg(short, long)]
    quiet: bool,
}

/// Restarts them one after the other, and says the name of each that runs.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut quiet = args.quiet;
    let restart = async |sandbox: microsandbox::SandboxHandle| {
        sandbox.stop_within(args.time).await?;
        boot::run_of(&sandbox.start_detached().await?, quiet).await?;
        quiet = true;
        Ok(())
    };
    args.selection.each(Missing::Fail, |_| true, restart).await
}
