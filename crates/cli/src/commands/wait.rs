//! `msb wait`: returns when a sandbox has ended, and says why it did.

use std::process::ExitCode;

use microsandbox::{Sandbox, SandboxStatus};

use crate::output;

/// Arguments of `msb wait`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
}

/// Exit code for a sandbox that ended as nobody wanted, unless a signal gives another.
const CRASHED: u8 = 1;

/// Waits, and says the reason. The exit code tells an orderly end from others.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let ended = Sandbox::get(&args.name).await?.wait_until_stopped().await?;
    match &ended.reason {
        Some(reason) => output::line(reason)?,
        None => output::line("it never ran")?,
    }
    if ended.status != SandboxStatus::Crashed {
        return Ok(ExitCode::SUCCESS);
    }
    let by_signal = ended.signal.and_then(|signal| u8::try_from(128 + signal).ok());
    Ok(ExitCode::from(by_signal.unwrap_or(CRASHED)))
}
