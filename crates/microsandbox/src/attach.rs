//! A command or a job on the terminal of this process.
//!
//! ```text
//!  keys ──▶ detach keys ──▶ command ──▶ standard output      raw mode while it lasts
//!                │            └─ goes on as a job, to be attached to again
//!  SIGWINCH ──▶ resize      SIGTERM, SIGHUP, SIGINT, SIGQUIT ──▶ the end, terminal restored
//! ```

mod remote;

use std::{io, pin::pin};

use bytes::Bytes;
use microsandbox_runtime::wire::TerminalSize;
use tokio::{
    io::{AsyncWriteExt, Stdout},
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    ExecOptionsBuilder, ExecSink, ExitStatus, JobId, MicrosandboxError, MicrosandboxResult,
    RlimitResource,
    attach::remote::{News as RemoteNews, Remote},
    detach::{DEFAULT_KEYS, DetachKeys},
    exec::{self, ExecOptions},
    link::Link,
    terminal::{RawMode, Terminal},
};

/// Builds the options of a command on the terminal of this process.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct AttachOptionsBuilder {
    command: ExecOptionsBuilder,
    detach_keys: Option<String>,
}

impl AttachOptionsBuilder {
    /// Adds an argument.
    pub fn arg(self, arg: impl Into<String>) -> Self {
        self.command(|command| command.arg(arg))
    }

    /// Adds arguments.
    pub fn args(self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.command(|command| command.args(args))
    }

    /// Working directory instead of the sandbox's.
    pub fn cwd(self, cwd: impl Into<String>) -> Self {
        self.command(|command| command.cwd(cwd))
    }

    /// User instead of the sandbox's.
    pub fn user(self, user: impl Into<String>) -> Self {
        self.command(|command| command.user(user))
    }

    /// Adds a variable over the sandbox's environment.
    pub fn env(self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.command(|command| command.env(key, value))
    }

    /// Adds variables over the sandbox's environment.
    pub fn envs(
        self,
        vars: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.command(|command| command.envs(vars))
    }

    /// Adds a limit, soft and hard alike.
    pub fn rlimit(self, resource: RlimitResource, limit: u64) -> Self {
        self.command(|command| command.rlimit(resource, limit))
    }

    /// Adds a limit.
    pub fn rlimit_range(self, resource: RlimitResource, soft: u64, hard: u64) -> Self {
        self.command(|command| command.rlimit_range(resource, soft, hard))
    }

    /// Any other option of a command. Its input and terminal are this process's whatever it says.
    pub fn command(mut self, f: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder) -> Self {
        self.command = f(self.command);
        self
    }

    /// Keys that detach, as Docker writes them: `ctrl-p,ctrl-q`; empty for none. Default: `ctrl-]`.
    pub fn detach_keys(mut self, keys: impl Into<String>) -> Self {
        self.detach_keys = Some(keys.into());
        self
    }

    pub(crate) fn build(self) -> MicrosandboxResult<AttachOptions> {
        let detach_keys = detach_keys(self.detach_keys.as_deref().unwrap_or(DEFAULT_KEYS))?;
        let command = self.command.stdin_pipe().tty(true).build()?;
        Ok(AttachOptions { command, detach_keys })
    }
}

fn detach_keys(keys: &str) -> MicrosandboxResult<DetachKeys> {
    DetachKeys::parse(keys).map_err(|key| {
        let message = format!("{key:?} in {keys:?} is no detach key: use a or ctrl-a");
        MicrosandboxError::InvalidConfig(message)
    })
}

/// Options, checked.
#[derive(Debug)]
pub(crate) struct AttachOptions {
    command: ExecOptions,
    detach_keys: DetachKeys,
}

/// How a terminal session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttachEnd {
    /// The user pressed the detach keys, and the command goes on.
    Detached {
        /// As this job; none: the sandbox's agent is too old or has too many, and the command was
        /// hung up, as by a terminal that closes.
        job: Option<JobId>,
    },
    /// The command ended.
    Exited(ExitStatus),
}

impl AttachEnd {
    /// The command's exit code, 0 for a user who detached.
    pub fn code(&self) -> i32 {
        match self {
            Self::Detached { .. } => 0,
            Self::Exited(status) => status.code,
        }
    }
}

/// Runs a command on the terminal until either has enough.
pub(crate) async fn run(
    link: &Link,
    cmd: String,
    options: AttachOptions,
) -> MicrosandboxResult<AttachEnd> {
    let here = Here::open()?;
    let mut command = exec::start(link, cmd, options.command, here.size()?).await?;
    let stdin = command.take_stdin();
    here.with(Remote::Command(command), stdin, options.detach_keys).await
}

/// Connects the terminal with a job until either has enough; dropping it leaves the job alone.
pub(crate) async fn run_job(link: &Link, id: JobId, keys: &str) -> MicrosandboxResult<AttachEnd> {
    let keys = detach_keys(keys)?;
    let here = Here::open()?;
    let (job, stdin) = Remote::job(link, id, here.size()?).await?;
    here.with(job, stdin, keys).await
}

/// The terminal of this process, and the signals that concern it.
struct Here {
    terminal: Terminal,
    signals: Signals,
}

impl Here {
    fn open() -> MicrosandboxResult<Self> {
        match Terminal::open().and_then(|it| Ok((it, Signals::catch()?))) {
            Ok((Some(terminal), signals)) => Ok(Self { terminal, signals }),
            Ok((None, _)) => Err(no_terminal()),
            Err(error) => Err(unusable(error)),
        }
    }

    fn size(&self) -> MicrosandboxResult<TerminalSize> {
        self.terminal.size().map_err(MicrosandboxError::file("measure", "/dev/stdin"))
    }

    async fn with(
        self,
        mut remote: Remote,
        stdin: Option<ExecSink>,
        keys: DetachKeys,
    ) -> MicrosandboxResult<AttachEnd> {
        let raw = self.terminal.raw().map_err(unusable)?;
        let signals = (self.signals, &raw);
        let outcome = converse(&mut remote, stdin, &self.terminal, keys, signals).await;
        drop(raw);
        match outcome? {
            Some(detached) => Ok(detached),
            None => Ok(AttachEnd::Exited(remote.status().await?)),
        }
    }
}

fn unusable(error: io::Error) -> MicrosandboxError {
    MicrosandboxError::file("use the terminal on", "/dev/stdin")(error)
}

fn no_terminal() -> MicrosandboxError {
    MicrosandboxError::Unsupported {
        feature: "a command on the terminal".into(),
        available_when: "when standard input is a terminal".into(),
    }
}

/// Moves keys and output until the command ends (`None`), the user has left or a signal comes.
async fn converse(
    remote: &mut Remote,
    stdin: Option<ExecSink>,
    terminal: &Terminal,
    keys: DetachKeys,
    (mut signals, raw): (Signals, &RawMode),
) -> MicrosandboxResult<Option<AttachEnd>> {
    let mut typing = pin!(type_into(stdin, terminal, keys));
    let mut screen = Screen { output: tokio::io::stdout(), pending: Bytes::new() };
    let mut gone = false;
    loop {
        tokio::select! {
            written = screen.write(), if !screen.pending.is_empty() => {
                written.map_err(MicrosandboxError::file("write to", "/dev/stdout"))?;
            }
            news = remote.next(), if screen.pending.is_empty() => match news? {
                RemoteNews::Output(bytes) => screen.pending = bytes,
                RemoteNews::Ended => return Ok(None),
                RemoteNews::Left { job } => return Ok(Some(AttachEnd::Detached { job })),
            },
            typed = &mut typing, if !gone => {
                // The command's end, or its answer, is what ends this.
                gone = true;
                if matches!(typed, Typed::Detach) {
                    remote.leave();
                }
            }
            news = signals.next() => match news {
                News::End(signal) => return Err(MicrosandboxError::AttachInterrupted { signal }),
                News::Size => resize(remote, terminal),
                News::Continued => {
                    raw.enter().map_err(unusable)?;
                    resize(remote, terminal);
                }
            },
        }
    }
}

fn resize(remote: &Remote, terminal: &Terminal) {
    // A terminal that is gone has no size; reading from it says so.
    if let Ok(size) = terminal.size() {
        remote.resize(size);
    }
}

/// Standard output, and the piece on its way there.
struct Screen {
    output: Stdout,
    pending: Bytes,
}

impl Screen {
    /// Writes what is pending. Cancel safe: called again, it goes on where it was.
    async fn write(&mut self) -> io::Result<()> {
        self.output.write_all_buf(&mut self.pending).await?;
        self.output.flush().await
    }
}

/// Why typing has ended.
enum Typed {
    Detach,
    /// The terminal is gone, or the command takes no more.
    NoMore,
}

/// What one read of a terminal gives at most: a line in its line discipline.
const LINE_BYTES: usize = 4096;

async fn type_into(stdin: Option<ExecSink>, terminal: &Terminal, mut keys: DetachKeys) -> Typed {
    let Some(stdin) = stdin else { return Typed::NoMore };
    let mut typed = vec![0; LINE_BYTES];
    loop {
        let Ok(len @ 1..) = terminal.read(&mut typed).await else { return Typed::NoMore };
        let mut passed = Vec::with_capacity(len);
        let detach = keys.filter(&typed[..len], &mut passed);
        if detach {
            return Typed::Detach;
        }
        if stdin.write(&passed).await.is_err() {
            return Typed::NoMore;
        }
    }
}

/// What a signal means for a session.
enum News {
    /// The process is asked to end, by the signal of this number.
    End(i32),
    /// The terminal has another size.
    Size,
    /// The process was stopped and goes on; the terminal was somebody else's meanwhile.
    Continued,
}

/// The signals that concern a session, caught from the moment this is made.
struct Signals {
    ends: [(SignalKind, Signal); 4],
    size: Signal,
    continued: Signal,
}

impl Signals {
    fn catch() -> io::Result<Self> {
        let caught = |kind| Ok::<_, io::Error>((kind, signal(kind)?));
        const SIGCONT: i32 = 18;
        Ok(Self {
            ends: [
                caught(SignalKind::hangup())?,
                caught(SignalKind::interrupt())?,
                caught(SignalKind::quit())?,
                caught(SignalKind::terminate())?,
            ],
            size: signal(SignalKind::window_change())?,
            continued: signal(SignalKind::from_raw(SIGCONT))?,
        })
    }

    /// The next one. Cancel safe.
    async fn next(&mut self) -> News {
        let [hangup, interrupt, quit, terminate] = &mut self.ends;
        let end = |(kind, _): &(SignalKind, Signal)| News::End(kind.as_raw_value());
        tokio::select! {
            _ = hangup.1.recv() => end(hangup),
            _ = interrupt.1.recv() => end(interrupt),
            _ = quit.1.recv() => end(quit),
            _ = terminate.1.recv() => end(terminate),
            _ = self.size.recv() => News::Size,
            _ = self.continued.recv() => News::Continued,
        }
    }
}
