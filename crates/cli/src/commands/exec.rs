//! `msb exec`: a command in a sandbox that runs.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use microsandbox::{ExecOptionsBuilder, Sandbox};

use crate::{
    interrupt::Interrupts,
    output, report,
    session::{Limits, Session},
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
    /// Start the command as a job, print its number and do not wait for it; see `msb jobs`
    #[arg(short, long)]
    detach: bool,
    #[command(flatten)]
    session: Session,
    #[command(flatten)]
    limits: Limits,
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
    let options = |mut options: ExecOptionsBuilder| {
        if let Some(workdir) = args.workdir {
            options = options.cwd(workdir);
        }
        if let Some(user) = args.user {
            options = options.user(user);
        }
        let env = args.env.into_iter().filter_map(Variable::resolve);
        args.limits.apply(options).args(words).envs(env)
    };
    if args.detach {
        if args.session.is_piped() {
            bail!("a job has no input but that of a terminal: use -dit");
        }
        let bound = |builder| options(args.session.detached(builder));
        let job = sandbox.exec_detached_with(program, bound).await?;
        output::line(job.id())?;
        return Ok(ExitCode::SUCCESS);
    }
    let ended = args.session.run(&sandbox, program, options, &mut interrupts).await?;
    Ok(report::status(ended.status))
}
