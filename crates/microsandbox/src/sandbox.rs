//! A running sandbox: how it is made and found, and how it ends. What it does meanwhile is in `commands`.

mod commands;

use std::{
    process::ExitStatus as ProcessStatus,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::Stream;
use microsandbox_runtime::{AgentClient, Owner, SandboxDir, step};

use crate::{
    MicrosandboxResult, SandboxBuilder, SandboxConfig, SandboxFilter, SandboxHandle,
    SandboxMetrics, SandboxStatus, SandboxStopResult,
    config::STOP_TIMEOUT,
    create::{self, Mode, PullProgressHandle},
    end,
    history::{self, PastRun},
    home::Home,
    link::Link,
    metrics, snapshot,
};

/// A running sandbox. Cheap to clone; all clones are the same sandbox.
///
/// One that was created or started attached ends when the last clone is dropped or the process
/// ends, in whatever way, unless [`Sandbox::detach`] lets it live on.
#[derive(Debug, Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SandboxConfig,
    link: Link,
    owner: Mutex<Option<Owner>>,
}

impl Sandbox {
    pub(crate) fn new(
        config: SandboxConfig,
        dir: SandboxDir,
        client: AgentClient,
        owner: Option<Owner>,
    ) -> Self {
        let link = Link { name: config.name.clone(), dir, client };
        Self { inner: Arc::new(Inner { config, link, owner: Mutex::new(owner) }) }
    }

    /// Begins the definition of a sandbox.
    pub fn builder(name: impl Into<String>) -> SandboxBuilder {
        SandboxBuilder::new(name)
    }

    /// Creates and starts a sandbox; it ends with this process.
    ///
    /// The image is pulled when it is not in the store. Returns once a command has run in the
    /// guest.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::InvalidConfig`],
    /// [`crate::MicrosandboxError::SandboxAlreadyExists`], [`crate::MicrosandboxError::Image`],
    /// [`crate::MicrosandboxError::BootStart`] and others; nothing of the sandbox is left behind
    /// then.
    ///
    /// # Cancel safety
    /// Dropping the future undoes what was done.
    pub async fn create(config: SandboxConfig) -> MicrosandboxResult<Self> {
        create::create_silently(config, Mode::Attached).await
    }

    /// As [`Sandbox::create`], but the sandbox lives on after this process.
    ///
    /// # Errors
    /// As [`Sandbox::create`].
    ///
    /// # Cancel safety
    /// Dropping the future undoes what was done.
    pub async fn create_detached(config: SandboxConfig) -> MicrosandboxResult<Self> {
        create::create_silently(config, Mode::Detached).await
    }

    /// As [`Sandbox::create`] on a task, telling how far the pull has come.
    pub fn create_with_pull_progress(
        config: SandboxConfig,
    ) -> (PullProgressHandle, tokio::task::JoinHandle<MicrosandboxResult<Self>>) {
        create::with_progress(config, Mode::Attached)
    }

    /// As [`Sandbox::create_detached`] on a task, telling how far the pull has come.
    pub fn create_detached_with_pull_progress(
        config: SandboxConfig,
    ) -> (PullProgressHandle, tokio::task::JoinHandle<MicrosandboxResult<Self>>) {
        create::with_progress(config, Mode::Detached)
    }

    /// Defines a sandbox that [`Sandbox::start`] starts; its disk is made.
    ///
    /// The image is pulled when it is not in the store.
    ///
    /// # Errors
    /// As [`Sandbox::create`], but for those of the boot; nothing of the sandbox is left behind
    /// then.
    ///
    /// # Cancel safety
    /// Dropping the future undoes what was done.
    pub async fn define(config: SandboxConfig) -> MicrosandboxResult<SandboxHandle> {
        create::define_silently(config).await
    }

    /// As [`Sandbox::define`] on a task, telling how far the pull has come.
    pub fn define_with_pull_progress(
        config: SandboxConfig,
    ) -> (PullProgressHandle, tokio::task::JoinHandle<MicrosandboxResult<SandboxHandle>>) {
        create::define_with_progress(config)
    }

    /// Starts a sandbox that does not run; it ends with this process. Its disk is as it was left.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxNotFound`],
    /// [`crate::MicrosandboxError::SandboxStillRunning`],
    /// [`crate::MicrosandboxError::SandboxBusy`], [`crate::MicrosandboxError::BootStart`] and
    /// others; the sandbox's disk and logs stay.
    pub async fn start(name: &str) -> MicrosandboxResult<Self> {
        Self::get(name).await?.start().await
    }

    /// As [`Sandbox::start`], but the sandbox lives on after this process.
    ///
    /// # Errors
    /// As [`Sandbox::start`].
    pub async fn start_detached(name: &str) -> MicrosandboxResult<Self> {
        Self::get(name).await?.start_detached().await
    }

    /// The sandbox of that name, running or not.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxNotFound`].
    pub async fn get(name: &str) -> MicrosandboxResult<SandboxHandle> {
        SandboxHandle::find(&Home::from_env()?, name).await
    }

    /// Every sandbox of this home, ordered by name.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Database`] when the catalogue cannot be read.
    pub async fn list() -> MicrosandboxResult<Vec<SandboxHandle>> {
        Self::list_with(SandboxFilter::new()).await
    }

    /// The sandboxes that `filter` chooses, ordered by name.
    ///
    /// # Errors
    /// As [`Sandbox::list`].
    pub async fn list_with(filter: SandboxFilter) -> MicrosandboxResult<Vec<SandboxHandle>> {
        SandboxHandle::all(&Home::from_env()?, filter).await
    }

    /// Removes a stopped sandbox: its definition, its disk, its logs.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxNotFound`],
    /// [`crate::MicrosandboxError::SandboxStillRunning`],
    /// [`crate::MicrosandboxError::SandboxBusy`].
    pub async fn remove(name: &str) -> MicrosandboxResult<()> {
        Self::get(name).await?.remove().await
    }

    /// Removes the sandboxes that `filter` chooses and that do not run, and what commands that were
    /// killed have left behind. Gives their names.
    ///
    /// # Errors
    /// As [`Sandbox::remove`]; one that another command works on meanwhile is left alone.
    pub async fn prune(filter: SandboxFilter) -> MicrosandboxResult<Vec<String>> {
        let home = Home::from_env()?;
        create::heal_existing(&home).await?;
        let mut removed = Vec::new();
        for handle in SandboxHandle::all(&home, filter).await? {
            if handle.remove_unless_in_use().await? {
                removed.push(handle.name().to_owned());
            }
        }
        Ok(removed)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.config.name
    }

    /// Its definition, with the image's defaults merged in.
    pub fn config(&self) -> &SandboxConfig {
        &self.inner.config
    }

    /// What state it is in now.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxNotFound`] once it has been removed.
    pub async fn status(&self) -> MicrosandboxResult<SandboxStatus> {
        Ok(Self::get(self.name()).await?.status())
    }

    /// Why its last run ended, in words, if nobody wanted it to; `None` while it runs, and after an
    /// end that somebody wanted.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Runtime`] when its records cannot be read.
    pub async fn last_error(&self) -> MicrosandboxResult<Option<String>> {
        let end = end::told(Some(&self.inner.link.client), &self.inner.link.dir)?;
        let bad = end.filter(|end| !end.reason.is_orderly());
        Ok(bad.map(|end| end.reason.to_string()))
    }

    /// Removes what is kept of it, as [`Sandbox::remove`] does.
    ///
    /// # Errors
    /// As [`Sandbox::remove`].
    pub async fn remove_persisted(&self) -> MicrosandboxResult<()> {
        Self::remove(self.name()).await
    }

    /// Whether this process's end is the sandbox's.
    pub fn owns_lifecycle(&self) -> bool {
        self.inner.owner.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Lets the sandbox live on after this process.
    pub async fn detach(self) {
        if let Err(error) = self.release().await {
            tracing::warn!(%error, sandbox = self.name(), "nothing to detach from");
        }
    }

    /// As [`Sandbox::detach`], telling when the sandbox has ended.
    pub(crate) async fn release(&self) -> MicrosandboxResult<()> {
        let owner = self.inner.owner.lock().unwrap_or_else(PoisonError::into_inner).take();
        match owner {
            Some(owner) => Ok(owner.detach().await?),
            None => Ok(()),
        }
    }

    /// Has the guest run a command that does nothing, and gives the time that took, all the way and
    /// back. Put a timeout around it: a guest that hangs does not answer.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxEnded`], [`crate::MicrosandboxError::ExecFailed`] when it
    /// starts nothing.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ping(&self) -> MicrosandboxResult<Duration> {
        self.inner.link.client.ping().await.map_err(|error| self.inner.link.explain(error))
    }

    /// Has it stand still: no processor of it runs until [`Sandbox::resume`], and no timer of its
    /// definition. What is under way in it waits; what would begin is refused at once. A sandbox
    /// that stands still can be stopped, killed and removed; one whose owner ends does so, too.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Unsupported`] on a VMM that cannot,
    /// [`crate::MicrosandboxError::SandboxEnded`].
    ///
    /// # Cancel safety
    /// It may stand still all the same.
    pub async fn pause(&self) -> MicrosandboxResult<()> {
        self.inner.link.client.pause().await.map_err(|error| self.inner.link.explain(error))
    }

    /// Has it go on after [`Sandbox::pause`], with the time it is now.
    ///
    /// # Errors
    /// As [`Sandbox::pause`].
    ///
    /// # Cancel safety
    /// It may go on all the same.
    pub async fn resume(&self) -> MicrosandboxResult<()> {
        self.inner.link.client.resume().await.map_err(|error| self.inner.link.explain(error))
    }

    /// Makes children of it, one of each name, which go on from where it is now: memory, processes
    /// and disk. It stands still once for all of them. Each child has its own randomness, clock,
    /// host name, machine id and boot id; commands of this sandbox's clients are not theirs,
    /// detached jobs are. They end with this process.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Unsupported`] on a VMM that cannot,
    /// [`crate::MicrosandboxError::SandboxAlreadyExists`] and others; no child is left then, and
    /// the sandbox is as it was.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no child.
    pub async fn fork(
        &self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> MicrosandboxResult<Vec<Self>> {
        self.fork_as(names.into_iter().map(Into::into).collect(), Mode::Attached).await
    }

    /// As [`Sandbox::fork`], but the children live on after this process.
    ///
    /// # Errors
    /// As [`Sandbox::fork`].
    ///
    /// # Cancel safety
    /// As [`Sandbox::fork`].
    pub async fn fork_detached(
        &self,
        names: impl IntoIterator<Item = impl Into<String>>,
    ) -> MicrosandboxResult<Vec<Self>> {
        self.fork_as(names.into_iter().map(Into::into).collect(), Mode::Detached).await
    }

    async fn fork_as(&self, names: Vec<String>, mode: Mode) -> MicrosandboxResult<Vec<Self>> {
        let (config, link) = (&self.inner.config, &self.inner.link);
        snapshot::fork(&Home::from_env()?, config, &link.dir, names, mode).await
    }

    /// What it uses now, in the guest and on the host.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::SandboxEnded`], [`crate::MicrosandboxError::Runtime`] when its
    /// agent is of a version that does not tell.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn metrics(&self) -> MicrosandboxResult<SandboxMetrics> {
        let sample = metrics::sample(&self.inner.link.client, &self.inner.link.dir).await;
        sample.map_err(|error| self.inner.link.explain(error))
    }

    /// As [`Sandbox::metrics`] again and again, `interval` apart, the first at once. The stream
    /// ends after its first error, such as the end of the sandbox. Nothing is asked between
    /// samples, and nothing when nobody takes them.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn metrics_stream(
        &self,
        interval: Duration,
    ) -> impl Stream<Item = MicrosandboxResult<SandboxMetrics>> + Send + 'static {
        metrics::samples(self.clone(), interval)
    }

    /// The runs of sandboxes of that name that have ended, latest first, also of removed ones. A
    /// home remembers its latest 1000 runs.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Database`] when the catalogue cannot be read.
    pub async fn history(name: &str) -> MicrosandboxResult<Vec<PastRun>> {
        history::of(&Home::from_env()?, Some(name)).await
    }

    /// As [`Sandbox::history`], of all names.
    ///
    /// # Errors
    /// As [`Sandbox::history`].
    pub async fn history_of_all() -> MicrosandboxResult<Vec<PastRun>> {
        history::of(&Home::from_env()?, None).await
    }

    /// Ends the sandbox in order: commands are asked to end and then killed, everything written is
    /// on the disk when this returns. After 10 seconds it is ended by force.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Runtime`] when its supervisor does not end it.
    pub async fn stop(&self) -> MicrosandboxResult<()> {
        self.stop_with_timeout(STOP_TIMEOUT).await.map(drop)
    }

    /// As [`Sandbox::stop`] with another time for the orderly end; says how it went.
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn stop_with_timeout(
        &self,
        timeout: Duration,
    ) -> MicrosandboxResult<SandboxStopResult> {
        self.inner.link.client.stop(timeout);
        step::reached("stop.asked");
        end::in_time(&self.inner.link.client, timeout).await?;
        self.conclude().await
    }

    /// As [`Sandbox::stop`]; gives the VMM's exit status.
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn stop_and_wait(&self) -> MicrosandboxResult<ProcessStatus> {
        let result = self.stop_with_timeout(STOP_TIMEOUT).await?;
        Ok(result.process_status())
    }

    /// Ends the sandbox at once. What the guest had not yet written to its disk is lost.
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn kill(&self) -> MicrosandboxResult<()> {
        self.stop_with_timeout(Duration::ZERO).await.map(drop)
    }

    /// Begins nothing more in the sandbox and ends it in order once all that is under way has
    /// ended: commands, detached jobs, file operations. Returns then.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Runtime`] when its records cannot be read.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the sandbox draining.
    pub async fn drain(&self) -> MicrosandboxResult<()> {
        self.inner.link.client.drain();
        self.wait_until_stopped().await.map(drop)
    }

    /// Waits until the sandbox has ended, for whatever reason; gives the VMM's exit status.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Runtime`] when its records cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&self) -> MicrosandboxResult<ProcessStatus> {
        self.wait_until_stopped().await.map(|result| result.process_status())
    }

    /// Waits until the sandbox has ended, for whatever reason.
    ///
    /// # Errors
    /// [`crate::MicrosandboxError::Runtime`] when its records cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_until_stopped(&self) -> MicrosandboxResult<SandboxStopResult> {
        self.inner.link.client.closed().await;
        self.conclude().await
    }

    /// What came of the run; nothing stays of an ephemeral sandbox but that.
    async fn conclude(&self) -> MicrosandboxResult<SandboxStopResult> {
        let home = Home::from_env()?;
        let Link { name, dir, client } = &self.inner.link;
        let result = end::result(&home, name, dir, Some(client)).await?;
        if self.inner.config.ephemeral {
            SandboxHandle::clear_away(&home, self.name()).await?;
        }
        Ok(result)
    }
}
