//! `msb run`: a new sandbox for one command.
//!
//! Without a name the sandbox is ephemeral: it ends with msb, however msb ends, and leaves nothing.
//! With a name it is kept, stopped, once the command has ended; it goes on with a command that its
//! user has detached from.

use std::{
    hash::{BuildHasher, RandomState},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context as _, anyhow};
use microsandbox::{MicrosandboxError, RunInfo, Sandbox};
use serde_json::json;

use crate::{
    boot::{self, Life},
    definition::Definition,
    interrupt::Interrupts,
    report,
    session::Session,
    stream::Ended,
};

/// Arguments of `msb run`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    definition: Definition,
    /// Name of the sandbox, which is then kept [default: one that is removed afterwards]
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    session: Session,
    /// Write the times of the boot and the command to standard error, as JSON
    #[arg(long)]
    timings: bool,
    /// Command, and its arguments [default: the image's]
    #[arg(trailing_var_arg = true)]
    command: Vec<String>,
}

/// Runs the command; its exit code is msb's.
pub(crate) async fn run(mut args: Args) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let ephemeral = args.name.is_none();
    let quiet = args.definition.options.quiet;
    let name = args.name.clone().unwrap_or_else(random_name);
    args.definition.give_back_word(&mut args.command);
    let config = args.definition.into_config(&name, ephemeral)?;
    let sandbox = boot::create(config, Life::Attached, quiet, &mut interrupts).await?;
    let ready = Instant::now();

    let worked = async {
        let run = boot::run_of(&sandbox, quiet).await?;
        Ok::<_, anyhow::Error>((
            run,
            work(&sandbox, args.command, args.session, &mut interrupts).await?,
        ))
    };
    let worked = worked.await;
    let left = !ephemeral && worked.as_ref().is_ok_and(|(_, ended)| ended.status.is_none());
    let put_away = tokio::select! {
        () = sandbox.clone().detach(), if left => Ok(()),
        put_away = put_away(&sandbox, ephemeral), if !left => put_away,
        // The supervisor goes on with it when msb is gone.
        interrupt = interrupts.next() => Err(interrupt.into()),
    };
    let (run, ended) = worked?;
    put_away?;
    if args.timings {
        tell_timings(begun, ready, &ended, run.as_ref())?;
    }
    Ok(report::status(ended.status))
}

/// Runs `words`, or what the image has for it.
async fn work(
    sandbox: &Sandbox,
    words: Vec<String>,
    session: Session,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Ended> {
    let (program, arguments) = sandbox.config().command(words).ok_or_else(|| {
        anyhow!("the image has no default command: give one, such as `-- sh -c 'echo hello'`")
    })?;
    session.run(sandbox, program, |options| options.args(arguments), interrupts).await
}

/// Ends the sandbox, and leaves nothing of one that nobody named.
async fn put_away(sandbox: &Sandbox, ephemeral: bool) -> anyhow::Result<()> {
    if !ephemeral {
        return Ok(sandbox.stop().await?);
    }
    // Nothing in it is to be kept, so nothing needs to be written back first.
    sandbox.kill().await?;
    match Sandbox::remove(sandbox.name()).await {
        Err(MicrosandboxError::SandboxNotFound(_)) => Ok(()),
        removed => Ok(removed?),
    }
}

fn random_name() -> String {
    // Each `RandomState` has its own keys, made from the kernel's random numbers.
    format!("run-{:016x}", RandomState::new().hash_one(()))
}

fn tell_timings(
    begun: Instant,
    ready: Instant,
    ended: &Ended,
    run: Option<&RunInfo>,
) -> anyhow::Result<()> {
    let since = |instant: Instant| {
        u64::try_from(instant.saturating_duration_since(begun).as_micros()).unwrap_or(u64::MAX)
    };
    let timings = json!({
        "boot": run.map(|run| run.boot),
        "ready_us": since(ready),
        "first_output_us": ended.first_output.map(since),
        "exited_us": since(ended.at),
        "total_us": since(Instant::now()),
    });
    report::data(&timings.to_string());
    Ok(())
}
