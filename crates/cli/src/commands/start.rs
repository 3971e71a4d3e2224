//! `msb start`: sandboxes that were stopped, running again with the disk they had.

use microsandbox::Sandbox;

use crate::{boot, output};

/// Arguments of `msb start`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of the sandboxes
    #[arg(required = true)]
    names: Vec<String>,
    /// Show no notes
    #[arg(short, long)]
    quiet: bool,
}

/// Starts them one after the other, and says the name of each that runs.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut quiet = args.quiet;
    for name in &args.names {
        let sandbox = Sandbox::start_detached(name).await?;
        boot::run_of(&sandbox, quiet).await?;
        quiet = true;
        output::line(name)?;
    }
    Ok(())
}
