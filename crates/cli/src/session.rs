//! Running a command with the user at the other end: on pipes, or on the terminal.

use std::time::{Duration, Instant};

use anyhow::bail;
use microsandbox::{AttachEnd, ExecOptionsBuilder, JobId, Mebibytes, Rlimit, Sandbox};

use crate::{
    interrupt::Interrupts,
    report,
    stream::{self, Ended},
    values,
};

/// How a command is connected and bounded: options of `run` and `exec` alike.
#[derive(Debug, clap::Args)]
pub(crate) struct Session {
    /// Pass standard input to the command
    #[arg(short, long)]
    interactive: bool,
    /// Run the command on a terminal; with -i on this one, as -it
    #[arg(short, long)]
    tty: bool,
    /// Keys that leave a terminal session to itself, such as ctrl-p,ctrl-q; "" for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]", requires = "tty")]
    detach_keys: String,
    /// Kill the command after this time, such as 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    timeout: Option<Duration>,
    /// Limit a resource of each process: nofile=1024 or nofile=SOFT:HARD
    #[arg(long, value_name = "NAME=LIMIT", value_parser = values::rlimit)]
    ulimit: Vec<Rlimit>,
}

/// What a command and its descendants may use of the sandbox.
#[derive(Debug, clap::Args)]
pub(crate) struct Limits {
    /// Memory of the command and its descendants: MiB, or with a unit, such as 64M
    #[arg(long, value_parser = values::memory)]
    memory: Option<Mebibytes>,
    /// Processors of the command and its descendants, such as 0.5
    #[arg(long)]
    cpus: Option<f64>,
    /// Processes of the command and its descendants
    #[arg(long, value_name = "NUMBER")]
    pids: Option<u32>,
}

impl Limits {
    /// Sets them.
    pub(crate) fn apply(&self, mut options: ExecOptionsBuilder) -> ExecOptionsBuilder {
        if let Some(memory) = self.memory {
            options = options.memory_limit(memory);
        }
        if let Some(cpus) = self.cpus {
            options = options.cpu_limit(cpus);
        }
        if let Some(pids) = self.pids {
            options = options.process_limit(pids);
        }
        options
    }
}

impl Session {
    /// Sets what bounds the command, and whether it has a terminal, for one that is connected to
    /// nothing.
    pub(crate) fn detached(self, command: ExecOptionsBuilder) -> ExecOptionsBuilder {
        bound(command.tty(self.tty), (self.timeout, self.ulimit))
    }

    /// Whether the command would have input without a terminal.
    pub(crate) const fn is_piped(&self) -> bool {
        self.interactive && !self.tty
    }

    /// Runs the command until it has ended.
    ///
    /// A signal reaches the command as [`stream::run`] has it; on the terminal, where keys take that
    /// part, it ends the session.
    pub(crate) async fn run(
        self,
        sandbox: &Sandbox,
        program: String,
        options: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
        interrupts: &mut Interrupts,
    ) -> anyhow::Result<Ended> {
        let (bounds, tty) = ((self.timeout, self.ulimit), self.tty);
        let options = move |command| bound(options(command), bounds);
        if self.interactive && tty {
            return on_terminal(sandbox, program, options, self.detach_keys).await;
        }
        let handle = sandbox.exec_stream_with(program, |command| {
            let command = options(command).tty(tty);
            if self.interactive { command.stdin_pipe() } else { command }
        });
        stream::run(handle.await?, interrupts).await
    }
}

fn bound(
    mut command: ExecOptionsBuilder,
    (timeout, rlimits): (Option<Duration>, Vec<Rlimit>),
) -> ExecOptionsBuilder {
    if let Some(timeout) = timeout {
        command = command.timeout(timeout);
    }
    rlimits.into_iter().fold(command, |command, Rlimit { resource, soft, hard }| {
        command.rlimit_range(resource, soft, hard)
    })
}

/// What is said when the user has left a command on the terminal.
pub(crate) fn detached(name: &str, job: Option<JobId>) -> String {
    match job {
        Some(id) => format!("detached; `msb jobs attach {name} {id}` comes back to it"),
        None => "detached; the sandbox cannot keep the command, which was hung up".to_owned(),
    }
}

async fn on_terminal(
    sandbox: &Sandbox,
    program: String,
    options: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
    detach_keys: String,
) -> anyhow::Result<Ended> {
    let session =
        sandbox.attach_session(program, |attach| attach.command(options).detach_keys(detach_keys));
    let status = match session.await? {
        AttachEnd::Exited(status) => Some(status),
        AttachEnd::Detached { job } => {
            if sandbox.config().ephemeral {
                report::note("detached; a sandbox without a name ends here");
            } else {
                report::note(detached(sandbox.name(), job));
            }
            None
        }
        other => bail!("the session ended in a way this version does not know: {other:?}"),
    };
    Ok(Ended { status, at: Instant::now(), first_output: None })
}
