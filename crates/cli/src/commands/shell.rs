//! `msb shell`: the shell of a running sandbox, on this terminal.

use std::process::ExitCode;

use anyhow::bail;
use microsandbox::{AttachEnd, Sandbox};

use crate::{report, session};

/// Arguments of `msb shell`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
    /// User: name, uid, user:group or uid:gid [default: the sandbox's]
    #[arg(short, long)]
    user: Option<String>,
    /// Working directory [default: the sandbox's]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Keys that leave the shell to itself, such as ctrl-p,ctrl-q; "" for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]")]
    detach_keys: String,
}

/// Runs the shell; its exit code is msb's.
pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let sandbox = Sandbox::get(&args.name).await?.connect().await?;
    let shell = sandbox.config().shell().to_owned();
    let session = sandbox.attach_session(shell, |mut options| {
        if let Some(user) = args.user {
            options = options.user(user);
        }
        if let Some(workdir) = args.workdir {
            options = options.cwd(workdir);
        }
        options.detach_keys(args.detach_keys)
    });
    Ok(match session.await? {
        AttachEnd::Exited(status) => report::status(Some(status)),
        AttachEnd::Detached { job } => {
            report::note(session::detached(&args.name, job));
            ExitCode::SUCCESS
        }
        other => bail!("the session ended in a way this version does not know: {other:?}"),
    })
}
