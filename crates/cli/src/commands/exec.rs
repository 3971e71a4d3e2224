//! `msb exec`: a command in a sandbox that runs.

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use microsandbox::Sandbox;

use crate::{
    interrupt::Interrupts,
    report, stream,
    values::{self, Variable},
};

/// Arguments of `msb exec`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
    /// Set a variable; NAME alone takes msb's own value
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = values::variable)]
    env: Vec<Variable>,
    /// Working directory [default: the sandbox's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User: name, uid, user:group or uid:gid [default: the sandbox's]
    #[arg(short, long)]
    user: Option<String>,
    /// Pass standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Kill the command after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Command, and its arguments
    #[arg(trailing_var_arg = true, required = true)]
    command: Vec<String>,
}

/// Runs the command; its exit code is msb's.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let mut words = args.command.into_iter();
    let program = words.next().context("a command is required")?;
    let sandbox = Sandbox::get(&args.name).await?.connect().await?;
    let handle = sandbox.exec_stream_with(program, |mut options| {
        if args.interactive {
            options = options.stdin_pipe();
        }
        if let Some(workdir) = args.workdir {
            options = options.cwd(workdir);
        }
        if let Some(user) = args.user {
            options = options.user(user);
        }
        if let Some(timeout) = args.timeout {
            options = options.timeout(timeout);
        }
        options.args(words).envs(args.env.into_iter().filter_map(Variable::resolve))
    });
    let ended = stream::run(handle.await?, &sandbox, &mut interrupts).await?;
    Ok(report::status(ended.status))
}
