//! Commands in a sandbox: options, output, streams.

use std::time::Duration;

use bytes::Bytes;
use microsandbox_runtime::{
    AgentClient, Error as RuntimeError, ExecStream, ExecUpdate, StdinWriter,
    wire::{self, DEFAULT_WINDOW_BYTES, Exec, ExecExited, Program},
};

use crate::{MicrosandboxError, MicrosandboxResult, names::validate_variable};

pub use microsandbox_runtime::wire::{Rlimit, RlimitResource, Usage};

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

    /// The options, checked.
    ///
    /// # Errors
    /// [`MicrosandboxError::InvalidConfig`] for a variable or argument that no process can have.
    pub fn build(self) -> MicrosandboxResult<ExecOptions> {
        let options = self.options;
        for (key, value) in &options.env {
            validate_variable(key, value)?;
        }
        if options.args.iter().any(|arg| arg.contains('\0')) {
            return Err(MicrosandboxError::InvalidConfig("an argument has a NUL byte".into()));
        }
        Ok(options)
    }
}

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
}

impl From<&ExecExited> for ExitStatus {
    fn from(exited: &ExecExited) -> Self {
        let code = exited.status.shell_code();
        let signal = match exited.status {
            wire::ExitStatus::Signal(signal) => Some(i32::from(signal)),
            wire::ExitStatus::Code(_) => None,
        };
        Self { code, success: code == 0, signal, out_of_memory: exited.out_of_memory }
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
    exited: Option<ExecExited>,
}

impl ExecHandle {
    /// Number of the command on this connection.
    pub fn id(&self) -> String {
        self.stream.id().to_string()
    }

    /// What happens next; `None` once the command has ended, or the sandbox has.
    ///
    /// Output that is not taken stops the command from writing more.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn recv(&mut self) -> Option<ExecEvent> {
        self.next().await.unwrap_or_else(|error| {
            tracing::debug!(%error, "command stream ended");
            None
        })
    }

    async fn next(&mut self) -> MicrosandboxResult<Option<ExecEvent>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        Ok(self.stream.next().await?.map(|update| match update {
            ExecUpdate::Started { pid } => ExecEvent::Started { pid },
            ExecUpdate::Stdout(bytes) => ExecEvent::Stdout(bytes),
            ExecUpdate::Stderr(bytes) => ExecEvent::Stderr(bytes),
            ExecUpdate::Exited(exited) => {
                self.exited = Some(exited);
                ExecEvent::Exited { code: exited.status.shell_code() }
            }
        }))
    }

    /// The way into standard input, once, if it was asked for with
    /// [`ExecOptionsBuilder::stdin_pipe`].
    pub fn take_stdin(&mut self) -> Option<ExecSink> {
        self.stdin.take()
    }

    /// Waits for the end and drops the output.
    ///
    /// # Errors
    /// [`MicrosandboxError::ExecTimeout`] when its time was up, [`MicrosandboxError::Runtime`] when
    /// the sandbox ended first.
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
        let closed = RuntimeError::Closed { during: "a command" };
        let exited = self.exited.as_ref().ok_or(closed)?;
        match self.timeout {
            Some(timeout) if exited.timed_out => Err(MicrosandboxError::ExecTimeout(timeout)),
            _ => Ok(exited.into()),
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

    /// Kills the command's process group.
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
        self.stream.resize(wire::TerminalSize { rows, columns: cols });
        Ok(())
    }
}

/// The way into a command's standard input.
#[derive(Debug, Clone)]
pub struct ExecSink {
    writer: StdinWriter,
}

impl ExecSink {
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

/// Starts a command and waits until it runs.
pub(crate) async fn start(
    client: &AgentClient,
    cmd: String,
    options: ExecOptions,
) -> Result<ExecHandle, RuntimeError> {
    let stdin = match options.stdin {
        StdinMode::Null => wire::StdinMode::Null,
        StdinMode::Pipe | StdinMode::Bytes(_) => wire::StdinMode::Pipe,
    };
    let mut stream = client.exec(&Exec {
        program: Program::Path(cmd),
        args: options.args,
        env: options.env,
        cwd: options.cwd,
        user: options.user,
        stdin,
        terminal: options.tty.then_some(wire::TerminalSize { rows: 24, columns: 80 }),
        rlimits: options.rlimits,
        timeout_ms: options
            .timeout
            .map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        window: DEFAULT_WINDOW_BYTES,
    })?;
    let first = match stream.next().await? {
        Some(ExecUpdate::Started { pid }) => Some(ExecEvent::Started { pid }),
        _ => return Err(RuntimeError::Closed { during: "the start of a command" }),
    };
    let writer = stream.stdin();
    let mut sink = None;
    match options.stdin {
        StdinMode::Null => {}
        StdinMode::Pipe => sink = Some(ExecSink { writer }),
        StdinMode::Bytes(bytes) => {
            tokio::spawn(async move {
                // A command that does not read all of its input is its own affair.
                let _taken = writer.write(Bytes::from(bytes)).await;
                writer.close();
            });
        }
    }
    Ok(ExecHandle { stream, first, stdin: sink, timeout: options.timeout, exited: None })
}
