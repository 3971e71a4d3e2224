//! `msb stop`: the orderly end of running sandboxes.

use std::time::Duration;

use microsandbox::{EndReason, SandboxHandle};

use crate::{
    report,
    selection::{Grace, Missing, Selection},
};

/// Arguments of `msb stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    selection: Selection,
    #[command(flatten)]
    grace: Grace,
    /// Kill at once; what a guest had not yet written to its disk is lost
    #[arg(short, long)]
    force: bool,
    /// Begin nothing more, and wait until all that is under way has ended
    #[arg(short, long, conflicts_with_all = ["time", "force"])]
    drain: bool,
}

/// Stops them one after the other, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let time = if args.force { Duration::ZERO } else { args.grace.time };
    let stop = async |sandbox: SandboxHandle| {
        if args.drain {
            return Ok(sandbox.connect().await?.drain().await?);
        }
        stop_within(&sandbox, time).await
    };
    args.selection.each(Missing::Fail, |sandbox| sandbox.status().is_alive(), stop).await
}

/// Stops it, and says so when it had to be killed although it was given time.
pub(crate) async fn stop_within(sandbox: &SandboxHandle, time: Duration) -> anyhow::Result<()> {
    let ended = sandbox.stop_within(time).await?;
    if ended.forced && ended.reason == Some(EndReason::StopRequested) && !time.is_zero() {
        let name = sandbox.name();
        report::note(format_args!("sandbox '{name}' did not end in time and was killed"));
    }
    Ok(())
}
