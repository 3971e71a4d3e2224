//! `msb create`: a sandbox that lives on when msb has ended.

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
    #[command(flatten)]
    definition: Definition,
}

/// Creates the sandbox, starts it, and says its name.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let quiet = args.definition.options.quiet;
    let config = args.definition.into_config(&args.name, false)?;
    let sandbox = boot::create(config, Life::Detached, quiet, &mut interrupts).await?;
    boot::run_of(&sandbox, quiet).await?;
    output::line(sandbox.name())
}
