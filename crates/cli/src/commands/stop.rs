//! `msb stop`: the orderly end of running sandboxes.

use std::time::Duration;

use microsandbox::Sandbox;

use crate::{output, report, values};

/// Arguments of `msb stop`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of the sandboxes
    #[arg(required = true)]
    names: Vec<String>,
    /// Time to end in order, after which a sandbox is killed
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
    time: Duration,
    /// Kill at once; what a guest had not yet written to its disk is lost
    #[arg(short, long)]
    force: bool,
}

/// Stops them one after the other, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let time = if args.force { Duration::ZERO } else { args.time };
    for name in &args.names {
        let ended = Sandbox::get(name).await?.stop_within(time).await?;
        if ended.forced && !args.force {
            report::note(format_args!("sandbox '{name}' did not end in time and was killed"));
        }
        output::line(name)?;
    }
    Ok(())
}
