//! `msb create`: a sandbox that lives on when msb has ended, or waits to be started.

use anyhow::Context as _;

use crate::{
    boot::{self, Life},
    definition::Definition,
    interrupt::Interrupts,
    output,
};

/// Arguments of `msb create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    #[arg(long)]
    name: String,
    /// Do not start it: `msb start` does
    #[arg(long)]
    no_start: bool,
    #[command(flatten)]
    definition: Definition,
}

/// Creates the sandbox, starts it unless told not to, and says its name.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let quiet = args.definition.options.quiet;
    let config = args.definition.into_config(&args.name, false)?;
    if args.no_start {
        let defined = boot::define(config, quiet, &mut interrupts).await?;
        return output::line(defined.name());
    }
    let sandbox = boot::create(config, Life::Detached, quiet, &mut interrupts).await?;
    boot::run_of(&sandbox, quiet).await?;
    output::line(sandbox.name())
}
