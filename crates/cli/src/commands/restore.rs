//! `msb restore`: a sandbox from a snapshot, which lives on when msb has ended.

use std::process::ExitCode;

use anyhow::Context as _;

use crate::{
    boot::{self, Life},
    definition::Options,
    interrupt::Interrupts,
    output, report,
    session::Session,
};

/// Arguments of `msb restore`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Snapshot: a name, an id or a path
    snapshot: String,
    /// Name of the sandbox
    #[arg(short, long)]
    name: String,
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    session: Session,
    /// Command to run in it, and its arguments [default: none]
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

/// Restores the sandbox and says its name, or runs a command in it, whose exit code is msb's.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let quiet = args.options.quiet;
    let config = args.options.restoring(&args.snapshot, &args.name, false)?;
    let sandbox = boot::create(config, Life::Detached, quiet, &mut interrupts).await?;
    boot::run_of(&sandbox, quiet).await?;
    let mut words = args.command.into_iter();
    let Some(program) = words.next() else {
        output::line(sandbox.name())?;
        return Ok(ExitCode::SUCCESS);
    };
    let command =
        args.session.run(&sandbox, program, |options| options.args(words), &mut interrupts);
    Ok(report::status(command.await?.status))
}
