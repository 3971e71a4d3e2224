//! What a running sandbox does: commands, on a terminal or not, jobs; and its files and logs.

use microsandbox_runtime::wire::TerminalSize;

use super::Sandbox;
use crate::{
    AttachEnd, AttachOptionsBuilder, ExecHandle, ExecOptionsBuilder, ExecOutput, JobHandle, JobId,
    LogEntry, LogOptions, LogStream, LogStreamOptions, MicrosandboxResult, SandboxFs, attach,
    exec::{self, ExecOptions},
    jobs, logs,
};

/// Size of a terminal that nobody looks at: that of the oldest ones, which every program can take.
const DEFAULT_TERMINAL: TerminalSize = TerminalSize { rows: 24, columns: 80 };

impl Sandbox {
    /// Runs a command and collects its output.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::ExecFailed`] when it could not be started,
    /// [`crate::MicrosandboxError::SandboxEnded`] when the sandbox ended first. A command that
    /// fails is no error: see [`ExecOutput::status`].
    ///
    /// # Cancel safety
    /// Dropping the future kills the command and all its descendants.
    pub async fn exec(
        &self,
        cmd: impl Into<String>,
        args: impl IntoIterator<Item = impl Into<String>>,
    ) -> MicrosandboxResult<ExecOutput> {
        self.exec_stream(cmd, args).await?.collect().await
    }

    /// As [`Sandbox::exec`] with options.
    ///
    /// # Errors
    /// As [`Sandbox::exec`]; [`crate::MicrosandboxError::ExecTimeout`] when its time was up.
    ///
    /// # Cancel safety
    /// As [`Sandbox::exec`].
    pub async fn exec_with(
        &self,
        cmd: impl Into<String>,
        f: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
    ) -> MicrosandboxResult<ExecOutput> {
        self.exec_stream_with(cmd, f).await?.collect().await
    }

    /// Runs a command; its output comes as it is written.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn exec_stream(
        &self,
        cmd: impl Into<String>,
        args: impl IntoIterator<Item = impl Into<String>>,
    ) -> MicrosandboxResult<ExecHandle> {
        self.exec_stream_with(cmd, |options| options.args(args)).await
    }

    /// As [`Sandbox::exec_stream`] with options.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn exec_stream_with(
        &self,
        cmd: impl Into<String>,
        f: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
    ) -> MicrosandboxResult<ExecHandle> {
        self.run(cmd.into(), f(ExecOptionsBuilder::default()).build()?).await
    }

    /// Runs a script with the sandbox's shell and collects its output.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn shell(&self, script: impl Into<String>) -> MicrosandboxResult<ExecOutput> {
        self.shell_stream(script).await?.collect().await
    }

    /// As [`Sandbox::shell`] with options; its arguments become `$0` and on.
    ///
    /// # Errors
    /// As [`Sandbox::exec_with`].
    pub async fn shell_with(
        &self,
        script: impl Into<String>,
        f: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
    ) -> MicrosandboxResult<ExecOutput> {
        self.shell_stream_with(script, f).await?.collect().await
    }

    /// Runs a script with the sandbox's shell; its output comes as it is written.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn shell_stream(&self, script: impl Into<String>) -> MicrosandboxResult<ExecHandle> {
        self.shell_stream_with(script, |options| options).await
    }

    /// As [`Sandbox::shell_stream`] with options.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn shell_stream_with(
        &self,
        script: impl Into<String>,
        f: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
    ) -> MicrosandboxResult<ExecHandle> {
        let mut options = f(ExecOptionsBuilder::default()).build()?;
        options.args.splice(0..0, ["-c".to_owned(), script.into()]);
        self.run(self.inner.config.shell().to_owned(), options).await
    }

    /// Runs a command on the terminal of this process until it has ended; gives its exit code, or 0
    /// when the user detached.
    ///
    /// The terminal is in raw mode meanwhile, and its size is followed. Pressing `ctrl-]`, or what
    /// [`AttachOptionsBuilder::detach_keys`] says, detaches.
    ///
    /// `SIGHUP`, `SIGINT`, `SIGQUIT` and `SIGTERM` end the session with an error, so that the
    /// terminal can be restored. The runtime keeps what it has caught once: a program that goes on
    /// after its first session decides itself what these signals mean to it.
    ///
    /// # Errors
    /// As [`Sandbox::exec`]; [`crate::MicrosandboxError::Unsupported`] when standard input is no
    /// terminal, [`crate::MicrosandboxError::AttachInterrupted`] when a signal asked this process
    /// to end. The terminal is as it was before.
    ///
    /// # Cancel safety
    /// Dropping the future restores the terminal and kills the command and all its descendants.
    pub async fn attach(
        &self,
        cmd: impl Into<String>,
        args: impl IntoIterator<Item = impl Into<String>>,
    ) -> MicrosandboxResult<i32> {
        self.attach_with(cmd, |options| options.args(args)).await
    }

    /// As [`Sandbox::attach`] with options.
    ///
    /// # Errors
    /// As [`Sandbox::attach`].
    ///
    /// # Cancel safety
    /// As [`Sandbox::attach`].
    pub async fn attach_with(
        &self,
        cmd: impl Into<String>,
        f: impl FnOnce(AttachOptionsBuilder) -> AttachOptionsBuilder,
    ) -> MicrosandboxResult<i32> {
        Ok(self.attach_session(cmd, f).await?.code())
    }

    /// As [`Sandbox::attach`] with the sandbox's shell.
    ///
    /// # Errors
    /// As [`Sandbox::attach`].
    ///
    /// # Cancel safety
    /// As [`Sandbox::attach`].
    pub async fn attach_shell(&self) -> MicrosandboxResult<i32> {
        self.attach_with(self.inner.config.shell(), |options| options).await
    }

    /// As [`Sandbox::attach_with`]; tells the end of the command from a user who detached.
    ///
    /// # Errors
    /// As [`Sandbox::attach`].
    ///
    /// # Cancel safety
    /// As [`Sandbox::attach`].
    pub async fn attach_session(
        &self,
        cmd: impl Into<String>,
        f: impl FnOnce(AttachOptionsBuilder) -> AttachOptionsBuilder,
    ) -> MicrosandboxResult<AttachEnd> {
        let options = f(AttachOptionsBuilder::default()).build()?;
        attach::run(&self.inner.link, cmd.into(), options).await
    }

    /// Starts a command that goes on when this process has gone: a job.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    pub async fn exec_detached(
        &self,
        cmd: impl Into<String>,
        args: impl IntoIterator<Item = impl Into<String>>,
    ) -> MicrosandboxResult<JobHandle> {
        self.exec_detached_with(cmd, |options| options.args(args)).await
    }

    /// As [`Sandbox::exec_detached`] with options.
    ///
    /// # Errors
    /// As [`Sandbox::exec`]; [`crate::MicrosandboxError::InvalidConfig`] for input, which a job has
    /// only through its terminal.
    pub async fn exec_detached_with(
        &self,
        cmd: impl Into<String>,
        f: impl FnOnce(ExecOptionsBuilder) -> ExecOptionsBuilder,
    ) -> MicrosandboxResult<JobHandle> {
        let options = f(ExecOptionsBuilder::default()).build()?;
        jobs::start(&self.inner.link, cmd.into(), options, DEFAULT_TERMINAL).await
    }

    /// Its jobs, in the order they were started in.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxEnded`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn jobs(&self) -> MicrosandboxResult<Vec<JobHandle>> {
        jobs::all(&self.inner.link).await
    }

    /// The job of that number.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::JobNotFound`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn job(&self, id: JobId) -> MicrosandboxResult<JobHandle> {
        jobs::find(&self.inner.link, id).await
    }

    /// Its files.
    pub fn fs(&self) -> SandboxFs<'_> {
        SandboxFs::new(&self.inner.link)
    }

    /// What its logs hold. Changes nothing.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::File`] when a log cannot be read.
    pub async fn logs(&self, options: &LogOptions) -> MicrosandboxResult<Vec<LogEntry>> {
        logs::read(&self.inner.link.dir, options).await
    }

    /// What its logs hold, and what comes until it ends.
    ///
    /// # Errors
    /// As [`Sandbox::logs`].
    pub async fn log_stream(&self, options: &LogStreamOptions) -> MicrosandboxResult<LogStream> {
        LogStream::begin(&self.inner.link.dir, options).await
    }

    async fn run(&self, cmd: String, options: ExecOptions) -> MicrosandboxResult<ExecHandle> {
        exec::start(&self.inner.link, cmd, options, DEFAULT_TERMINAL).await
    }
}
