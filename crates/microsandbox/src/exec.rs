//! Commands in a sandbox: options, output, streams.

use std::time::Duration;

use bytes::Bytes;
use microsandbox_runtime::{
    Error as RuntimeError, ExecStream, ExecUpdate, StdinWriter, step,
    wire::{self, DEFAULT_WINDOW_BYTES, Exec, ExecExited, Program},
};

use crate::{
    Mebibytes, MicrosandboxError, MicrosandboxResult, link::Link, names::validate_variable,
};

pub use microsandbox_runtime::wire::{ExecLimits, Rlimit, RlimitResource, Usage};

/// Options of a command, all but the program itself.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ExecOptions {
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// Working directory; none: the sandbox's.
    pub cwd: Option<String>,
    /// User; none: the sandbox's.
    pub user: Option<String>,
    /// Environment over the sandbox's.
    pub env: Vec<(String, String)>,
    /// Time after which it is killed with all its descendants.
    pub timeout: Option<Duration>,
    /// Where standard input comes from.
    pub stdin: StdinMode,
    /// Run on a terminal.
    pub tty: bool,
    /// Limits set before the program starts.
    pub rlimits: Vec<Rlimit>,
    /// What it and its descendants may use together.
    pub limits: ExecLimits,
}

/// Where standard input comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    Null,
    /// [`ExecSink`].
    Pipe,
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Builds [`ExecOptions`].
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ExecOptionsBuilder {
    options: ExecOptions,
}

impl ExecOptionsBuilder {
    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.options.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.options.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Working directory instead of the sandbox's.
    pub fn cwd(mut self, cwd: impl Into<String>) -> Self {
        self.options.cwd = Some(cwd.into());
        self
    }

    /// User instead of the sandbox's.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.options.user = Some(user.into());
        self
    }

    /// Adds a variable over the sandbox's environment.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.env.push((key.into(), value.into()));
        self
    }

    /// Adds variables over the sandbox's environment.
    pub fn envs(
        mut self,
        vars: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.options.env.extend(vars.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Kills the command with all its descendants after this time.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = Some(timeout);
        self
    }

    /// Standard input is `/dev/null`; the default.
    pub fn stdin_null(mut self) -> Self {
        self.options.stdin = StdinMode::Null;
        self
    }

    /// Standard input is written through [`ExecHandle::take_stdin`].
    pub fn stdin_pipe(mut self) -> Self {
        self.options.stdin = StdinMode::Pipe;
        self
    }

    /// Standard input is these bytes, of any length.
    pub fn stdin_bytes(mut self, data: impl Into<Vec<u8>>) -> Self {
        self.options.stdin = StdinMode::Bytes(data.into());
        self
    }

    /// Runs the command on a terminal of 80 columns and 24 lines; output is then all stdout.
    pub fn tty(mut self, enabled: bool) -> Self {
        self.options.tty = enabled;
        self
    }

    /// Adds a limit, soft and hard alike.
    pub fn rlimit(self, resource: RlimitResource, limit: u64) -> Self {
        self.rlimit_range(resource, limit, limit)
    }

    /// Adds a limit.
    pub fn rlimit_range(mut self, resource: RlimitResource, soft: u64, hard: u64) -> Self {
        self.options.rlimits.push(Rlimit { resource, soft, hard });
        self
    }

    /// Memory of the command and its descendants together, page cache included. Beyond it the guest
    /// kernel kills a process of the command; see [`ExitStatus::out_of_memory`].
    pub fn memory_limit(mut self, memory: impl Into<Mebibytes>) -> Self {
        self.options.limits.memory_bytes = Some(u64::from(memory.into().0) << 20);
        self
    }

    /// Processor time of the command and its descendants together, in processors: `0.5` is half of
    /// one. At least 0.01; counted in thousandths.
    pub fn cpu_limit(mut self, processors: f64) -> Self {
        let thousandths = (processors * 1000.0).round().clamp(0.0, f64::from(u32::MAX));
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a whole number within the range of u32, or NaN, which becomes 0"
        )]
        let thousandths = thousandths as u32;
        self.options.limits.cpu_thousandths = Some(thousandths);
        self
    }

    /// Processes and threads of the command and its descendants together. Beyond it `fork` fails.
    pub fn process_limit(mut self, processes: u32) -> Self {
        self.options.limits.processes = Some(processes);
        self
    }

    /// The options, checked.
    ///
    /// # Errors
    /// [`MicrosandboxError::InvalidConfig`] for a variable or argument that no process can have, or
    /// a limit below which nothing runs.
    pub fn build(self) -> MicrosandboxResult<ExecOptions> {
        let options = self.options;
        for (key, value) in &options.env {
            validate_variable(key, value)?;
        }
        if options.args.iter().any(|arg| arg.contains('\0')) {
            return Err(MicrosandboxError::InvalidConfig("an argument has a NUL byte".into()));
        }
        check_limits(&options.limits)?;
        Ok(options)
    }
}

fn check_limits(limits: &ExecLimits) -> MicrosandboxResult<()> {
    let ExecLimits { memory_bytes, cpu_thousandths, processes } = *limits;
    let message = if memory_bytes == Some(0) {
        "a command needs at least 1 MiB of memory"
    } else if cpu_thousandths.is_some_and(|share| share < MIN_CPU_THOUSANDTHS) {
        "a command needs at least a hundredth of a processor"
    } else if processes == Some(0) {
        "a command is at least 1 process"
    } else {
        return Ok(());
    };
    Err(MicrosandboxError::InvalidConfig(message.into()))
}

/// The guest kernel counts in periods of 100 ms and gives at least 1 ms of each
/// (`kernel/sched/core.c`, `min_cfs_quota_period`).
const MIN_CPU_THOUSANDTHS: u32 = 10;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitStatus {
    /// Its exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// Whether the code is 0.
    pub success: bool,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// The guest kernel killed a process of it for want of memory.
    pub out_of_memory: bool,
    /// The limit that it went beyond then, in bytes, when it was its own and not the sandbox's.
    pub memory_limit_bytes: Option<u64>,
}

impl ExitStatus {
    pub(crate) fn new(exited: &ExecExited, limits: &ExecLimits) -> Self {
        let code = exited.status.shell_code();
        let signal = match exited.status {
            wire::ExitStatus::Signal(signal) => Some(i32::from(signal)),
            wire::ExitStatus::Code(_) => None,
        };
        // A group that is held at its limit has been there; one that is not had room left.
        let reached = |limit: &u64| exited.usage.peak_memory_bytes + (1 << 20) > *limit;
        let out_of_memory = exited.out_of_memory;
        let memory_limit_bytes = limits.memory_bytes.filter(reached).filter(|_| out_of_memory);
        Self { code, success: code == 0, signal, out_of_memory, memory_limit_bytes }
    }
}

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    status: ExitStatus,
    usage: Usage,
    stdout: Bytes,
    stderr: Bytes,
}

impl ExecOutput {
    /// How it ended.
    pub fn status(&self) -> ExitStatus {
        self.status
    }

    /// What it used, descendants included.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Standard output as text.
    ///
    /// # Errors
    /// When it is not UTF-8; [`ExecOutput::stdout_bytes`] has it as it is.
    pub fn stdout(&self) -> Result<String, std::string::FromUtf8Error> {
        String::from_utf8(self.stdout.to_vec())
    }

    /// Standard error as text.
    ///
    /// # Errors
    /// When it is not UTF-8; [`ExecOutput::stderr_bytes`] has it as it is.
    pub fn stderr(&self) -> Result<String, std::string::FromUtf8Error> {
        String::from_utf8(self.stderr.to_vec())
    }

    /// Standard output.
    pub fn stdout_bytes(&self) -> &Bytes {
        &self.stdout
    }

    /// Standard error.
    pub fn stderr_bytes(&self) -> &Bytes {
        &self.stderr
    }
}

/// What happens to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecEvent {
    /// It runs.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output or its terminal.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It has ended; nothing follows.
    Exited {
        /// As [`ExitStatus::code`].
        code: i32,
    },
}

/// A running command. Dropping it kills the command and all its descendants.
#[derive(Debug)]
pub struct ExecHandle {
    stream: ExecStream,
    /// `Started`, read ahead so that a command that cannot start is an error at once.
    first: Option<ExecEvent>,
    stdin: Option<ExecSink>,
    timeout: Option<Duration>,
    limits: ExecLimits,
    link: Link,
    exited: Option<ExecExited>,
    /// Why the stream ended early, until somebody asks.
    failed: Option<MicrosandboxError>,
}

impl ExecHandle {
    /// Number of the command on this connection.
    pub fn id(&self) -> String {
        self.stream.id().to_string()
    }

    /// What happens next; `None` once the command has ended, or the sandbox has: a stream that ends
    /// without [`ExecEvent::Exited`] has an error, which [`ExecHandle::wait`] then gives.
    ///
    /// Output that is not taken stops the command from writing more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<ExecEvent> {
        self.next().await.unwrap_or_else(|error| {
            self.failed = Some(error);
            None
        })
    }

    async fn next(&mut self) -> MicrosandboxResult<Option<ExecEvent>> {
        if let Some(failed) = self.failed.take() {
            return Err(failed);
        }
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        while let Some(update) = self.next_update().await? {
            return Ok(Some(match update {
                ExecUpdate::Started { pid } => ExecEvent::Started { pid },
                ExecUpdate::Stdout(bytes) => ExecEvent::Stdout(bytes),
                ExecUpdate::Stderr(bytes) => ExecEvent::Stderr(bytes),
                ExecUpdate::Exited(exited) => {
                    ExecEvent::Exited { code: exited.status.shell_code() }
                }
                // Answers to who detaches, which is no part of this interface.
                ExecUpdate::Detached(_) | ExecUpdate::NotDetached => continue,
            }));
        }
        Ok(None)
    }

    /// What comes next as the sandbox tells it.
    pub(crate) async fn next_update(&mut self) -> MicrosandboxResult<Option<ExecUpdate>> {
        let update = self.stream.next().await.map_err(|error| self.link.explain(error))?;
        if let Some(ExecUpdate::Exited(exited)) = update {
            self.exited = Some(exited);
        }
        Ok(update)
    }

    /// Asks for the command, which has a terminal, to become a job.
    pub(crate) fn ask_to_detach(&self) {
        self.stream.detach();
    }

    /// The way into standard input, once, if it was asked for with
    /// [`ExecOptionsBuilder::stdin_pipe`].
    pub fn take_stdin(&mut self) -> Option<ExecSink> {
        self.stdin.take()
    }

    /// Waits for the end and drops the output.
    ///
    /// # Errors
    /// [`MicrosandboxError::ExecTimeout`] when its time was up, [`MicrosandboxError::SandboxEnded`]
    /// with the reason when the sandbox ended first.
    ///
    /// # Cancel safety
    /// Cancel safe; output read so far is gone.
    pub async fn wait(&mut self) -> MicrosandboxResult<ExitStatus> {
        while self.next().await?.is_some() {}
        self.status()
    }

    /// Waits for the end and collects the output.
    ///
    /// # Errors
    /// As [`ExecHandle::wait`].
    ///
    /// # Cancel safety
    /// Not cancel safe: output read so far is gone.
    pub async fn collect(&mut self) -> MicrosandboxResult<ExecOutput> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(event) = self.next().await? {
            match event {
                ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ExecEvent::Started { .. } | ExecEvent::Exited { .. } => {}
            }
        }
        let status = self.status()?;
        let usage = self.exited.map(|exited| exited.usage).unwrap_or_default();
        Ok(ExecOutput { status, usage, stdout: stdout.into(), stderr: stderr.into() })
    }

    fn status(&self) -> MicrosandboxResult<ExitStatus> {
        let closed = || self.link.explain(RuntimeError::Closed { during: "a command" });
        let exited = self.exited.as_ref().ok_or_else(closed)?;
        match self.timeout {
            Some(timeout) if exited.timed_out => Err(MicrosandboxError::ExecTimeout(timeout)),
            _ => Ok(ExitStatus::new(exited, &self.limits)),
        }
    }

    /// Sends a signal to the command's process group, by its number on Linux x86-64.
    ///
    /// # Errors
    /// None today; a command that has ended is not told.
    pub async fn signal(&self, signal: i32) -> MicrosandboxResult<()> {
        self.stream.signal(signal);
        Ok(())
    }

    /// Kills the command and all its descendants, also those that left its process group.
    ///
    /// # Errors
    /// None today; a command that has ended is not told.
    pub async fn kill(&self) -> MicrosandboxResult<()> {
        const SIGKILL: i32 = 9;
        self.signal(SIGKILL).await
    }

    /// Tells the command's terminal its new size.
    ///
    /// # Errors
    /// None today; a command without a terminal ignores it.
    pub async fn resize(&self, rows: u16, cols: u16) -> MicrosandboxResult<()> {
        self.resize_to(wire::TerminalSize { rows, columns: cols });
        Ok(())
    }

    pub(crate) fn resize_to(&self, size: wire::TerminalSize) {
        self.stream.resize(size);
    }
}

/// The way into a command's standard input.
#[derive(Debug, Clone)]
pub struct ExecSink {
    writer: StdinWriter,
}

impl ExecSink {
    pub(crate) const fn new(writer: StdinWriter) -> Self {
        Self { writer }
    }

    /// Writes all of `data`; waits while the command does not read.
    ///
    /// # Errors
    /// [`MicrosandboxError::File`] with a broken pipe when the command takes no more input.
    pub async fn write(&self, data: impl AsRef<[u8]>) -> MicrosandboxResult<()> {
        if self.writer.write(Bytes::copy_from_slice(data.as_ref())).await {
            return Ok(());
        }
        let broken = std::io::ErrorKind::BrokenPipe.into();
        Err(MicrosandboxError::file("write the command's", "stdin")(broken))
    }

    /// Closes standard input: the command reads end of file.
    ///
    /// # Errors
    /// None today.
    pub async fn close(&self) -> MicrosandboxResult<()> {
        self.writer.close();
        Ok(())
    }
}

/// Starts a command and waits until it runs; a terminal, if it wants one, has this size.
pub(crate) async fn start(
    link: &Link,
    cmd: String,
    options: ExecOptions,
    size: wire::TerminalSize,
) -> MicrosandboxResult<ExecHandle> {
    let (limits, timeout) = (options.limits, options.timeout);
    let (exec, input) = request(cmd, options, size);
    let opened = if limits.is_empty() {
        link.client.exec(&exec)
    } else {
        link.client.exec_limited(&wire::LimitedExec { exec, limits })
    };
    let explain = |error| link.explain(error);
    let mut stream = opened.map_err(explain)?;
    let first = match stream.next().await.map_err(explain)? {
        Some(ExecUpdate::Started { pid }) => Some(ExecEvent::Started { pid }),
        _ => return Err(explain(RuntimeError::Closed { during: "the start of a command" })),
    };
    step::reached("exec.started");
    let writer = stream.stdin();
    let mut stdin = None;
    match input {
        StdinMode::Null => {}
        StdinMode::Pipe => stdin = Some(ExecSink { writer }),
        StdinMode::Bytes(bytes) => {
            tokio::spawn(async move {
                // A command that does not read all of its input is its own affair.
                let _taken = writer.write(Bytes::from(bytes)).await;
                writer.close();
            });
        }
    }
    let link = link.clone();
    Ok(ExecHandle { stream, first, stdin, timeout, limits, link, exited: None, failed: None })
}

/// What the agent is asked for, and what becomes of its input.
pub(crate) fn request(
    cmd: String,
    options: ExecOptions,
    size: wire::TerminalSize,
) -> (Exec, StdinMode) {
    let stdin = match options.stdin {
        StdinMode::Null => wire::StdinMode::Null,
        StdinMode::Pipe | StdinMode::Bytes(_) => wire::StdinMode::Pipe,
    };
    let millis = |timeout: Duration| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    let exec = Exec {
        program: Program::Path(cmd),
        args: options.args,
        env: options.env,
        cwd: options.cwd,
        user: options.user,
        stdin,
        terminal: options.tty.then_some(size),
        rlimits: options.rlimits,
        timeout_ms: options.timeout.map(millis),
        window: DEFAULT_WINDOW_BYTES,
    };
    (exec, options.stdin)
}
