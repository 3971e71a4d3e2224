//! `msb rm`: the end of sandboxes and all they had.

use microsandbox::{MicrosandboxError, Sandbox};

use crate::output;

/// Arguments of `msb rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of the sandboxes
    #[arg(required = true)]
    names: Vec<String>,
    /// Kill those that run, and pass over those that do not exist
    #[arg(short, long)]
    force: bool,
}

/// Removes them one after the other, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    for name in &args.names {
        let sandbox = match Sandbox::get(name).await {
            Err(MicrosandboxError::SandboxNotFound(_)) if args.force => continue,
            sandbox => sandbox?,
        };
        if args.force {
            sandbox.kill().await?;
        }
        sandbox.remove().await?;
        output::line(name)?;
    }
    Ok(())
}
