//! Writing a [`SandboxConfig`] in Rust.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::{
    BootMode, IntoImage, Mebibytes, MicrosandboxResult, PullPolicy, RootfsSource, Sandbox,
    SandboxConfig, SandboxHandle,
    create::{self, Mode, PullProgressHandle},
};

/// Builds a sandbox. Every setter replaces what an earlier call of it set, unless it says it adds.
#[derive(Debug, Clone)]
#[must_use]
pub struct SandboxBuilder {
    config: SandboxConfig,
}

impl SandboxBuilder {
    /// A sandbox of that name with 1 CPU and 512 MiB of memory.
    pub fn new(name: impl Into<String>) -> Self {
        Self { config: SandboxConfig { name: name.into(), ..SandboxConfig::default() } }
    }

    /// The image: a reference as Docker takes it, such as `python` or `127.0.0.1:5000/debian:py`.
    pub fn image(mut self, image: impl IntoImage) -> Self {
        self.config.image = image.into_image();
        self
    }

    /// Begins with what a snapshot holds instead of an empty disk: its name or id, or the path of one
    /// outside of the home (with a `/`). The image is the snapshot's, by digest; so are environment,
    /// working directory, user, shell and command, where nothing else is set here.
    pub fn from_snapshot(mut self, name_or_path: impl Into<String>) -> Self {
        self.config.snapshot = Some(name_or_path.into());
        self
    }

    /// Virtual processors.
    pub fn cpus(mut self, cpus: u8) -> Self {
        self.config.cpus = cpus;
        self
    }

    /// Memory: a number of MiB, or [`crate::SizeExt`]'s `2.gib()`.
    pub fn memory(mut self, memory: impl Into<Mebibytes>) -> Self {
        self.config.memory_mib = memory.into().0;
        self
    }

    /// Size of the writable disk. It is sparse and costs what is written.
    pub fn oci_upper_size(mut self, size: impl Into<Mebibytes>) -> Self {
        let RootfsSource::Oci(image) = &mut self.config.image;
        image.upper_size_mib = Some(size.into().0);
        self
    }

    /// Adds a variable to the environment of every command.
    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.env.push((key.into(), value.into()));
        self
    }

    /// Adds variables to the environment of every command.
    pub fn envs(
        mut self,
        vars: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        self.config.env.extend(vars.into_iter().map(|(key, value)| (key.into(), value.into())));
        self
    }

    /// Working directory of every command.
    pub fn workdir(mut self, workdir: impl Into<String>) -> Self {
        self.config.workdir = Some(workdir.into());
        self
    }

    /// User of every command: `name`, `uid`, `user:group` or `uid:gid`.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.config.user = Some(user.into());
        self
    }

    /// Shell of [`Sandbox::shell`].
    pub fn shell(mut self, shell: impl Into<String>) -> Self {
        self.config.shell = Some(shell.into());
        self
    }

    /// Host name of the machine, at most 64 bytes.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.config.hostname = Some(hostname.into());
        self
    }

    /// Program that the default command begins with, instead of the image's.
    pub fn entrypoint(mut self, entrypoint: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.entrypoint = Some(entrypoint.into_iter().map(Into::into).collect());
        self
    }

    /// Arguments of the default command, instead of the image's.
    pub fn cmd(mut self, cmd: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.config.cmd = Some(cmd.into_iter().map(Into::into).collect());
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    /// Adds labels.
    pub fn labels(
        mut self,
        labels: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>,
    ) -> Self {
        let labels = labels.into_iter().map(|(key, value)| (key.into(), value.into()));
        self.config.labels.extend(labels);
        self
    }

    /// When to look for the image on its registry.
    pub fn pull_policy(mut self, policy: PullPolicy) -> Self {
        self.config.pull_policy = policy;
        self
    }

    /// Removes the sandbox when its run ends.
    pub fn ephemeral(mut self, ephemeral: bool) -> Self {
        self.config.ephemeral = ephemeral;
        self
    }

    /// What its machine begins as, whatever `MSB_BOOT` says.
    pub fn boot(mut self, mode: BootMode) -> Self {
        self.config.boot = Some(mode);
        self
    }

    /// Ends the sandbox in order after so many seconds, counted from when it takes commands.
    pub fn max_duration(mut self, secs: u64) -> Self {
        self.config.policy.max_duration_secs = Some(secs);
        self
    }

    /// Ends the sandbox in order when nothing was under way in it for so many seconds: no command,
    /// no terminal, no file transfer. A connection alone does not keep it.
    pub fn idle_timeout(mut self, secs: u64) -> Self {
        self.config.policy.idle_timeout_secs = Some(secs);
        self
    }

    /// Takes the name from a sandbox that has it: that one is stopped, by force if it takes longer
    /// than 10 seconds, and removed.
    pub fn replace(mut self) -> Self {
        self.config.replace_existing = true;
        self
    }

    /// As [`SandboxBuilder::replace`] with another time for the orderly end; zero kills at once.
    pub fn replace_with_timeout(mut self, timeout: Duration) -> Self {
        self.config.replace_existing = true;
        self.config.replace_with_timeout = timeout;
        self
    }

    /// The definition, checked.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::InvalidConfig`].
    pub fn build(self) -> MicrosandboxResult<SandboxConfig> {
        self.config.validate()?;
        Ok(self.config)
    }

    /// Defines the sandbox and does not start it. See [`Sandbox::define`].
    ///
    /// # Errors
    /// As [`Sandbox::define`].
    ///
    /// # Cancel safety
    /// Dropping the future undoes what was done.
    pub async fn define(self) -> MicrosandboxResult<SandboxHandle> {
        Sandbox::define(self.build()?).await
    }

    /// Creates and starts the sandbox; it ends with this process.
    ///
    /// # Errors
    /// As [`Sandbox::create`].
    ///
    /// # Cancel safety
    /// Dropping the future undoes what was done.
    pub async fn create(self) -> MicrosandboxResult<Sandbox> {
        Sandbox::create(self.build()?).await
    }

    /// Creates and starts the sandbox; it lives on after this process.
    ///
    /// # Errors
    /// As [`Sandbox::create`].
    ///
    /// # Cancel safety
    /// Dropping the future undoes what was done.
    pub async fn create_detached(self) -> MicrosandboxResult<Sandbox> {
        Sandbox::create_detached(self.build()?).await
    }

    /// As [`SandboxBuilder::create`], telling how far the pull has come.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::InvalidConfig`]; the task has the others.
    pub fn create_with_pull_progress(
        self,
    ) -> MicrosandboxResult<(PullProgressHandle, JoinHandle<MicrosandboxResult<Sandbox>>)> {
        Ok(create::with_progress(self.build()?, Mode::Attached))
    }

    /// As [`SandboxBuilder::create_detached`], telling how far the pull has come.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::InvalidConfig`]; the task has the others.
    pub fn create_detached_with_pull_progress(
        self,
    ) -> MicrosandboxResult<(PullProgressHandle, JoinHandle<MicrosandboxResult<Sandbox>>)> {
        Ok(create::with_progress(self.build()?, Mode::Detached))
    }
}
