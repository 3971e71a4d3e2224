//! A sandbox of the catalogue, running or not.

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use microsandbox_db::SandboxRow;
use microsandbox_runtime::{
    Accel, AgentClient, BootTimes, ConfinementRecord, EndReason, Origin, SandboxDir, VmmKind, step,
};

use crate::{
    LogEntry, LogOptions, LogSource, LogStream, LogStreamOptions, MicrosandboxError,
    MicrosandboxResult, Sandbox, SandboxConfig, SandboxFilter, SandboxMetrics, SandboxStatus,
    SandboxStopResult, Snapshot,
    config::STOP_TIMEOUT,
    create::{self, Mode},
    end, history,
    home::Home,
    logs,
    status::reconcile,
    thread::on_thread,
};

/// What is known of a sandbox, and what can be done to it from outside.
///
/// The status is that of the moment the handle was made; [`Sandbox::get`] looks again.
#[derive(Debug, Clone)]
pub struct SandboxHandle {
    home: Home,
    row: SandboxRow,
    dir: SandboxDir,
    status: SandboxStatus,
}

/// The last run of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunInfo {
    /// Which VMM.
    pub vmm: VmmKind,
    /// How guest code was executed.
    pub accel: Accel,
    /// How its processes were confined, once the VMM was started.
    pub confinement: Option<ConfinementRecord>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// What the machine began as, once that was decided.
    pub origin: Option<Origin>,
    /// Host times of the boot.
    pub boot: BootTimes,
    /// `uname -r` of the guest, once it was up.
    pub kernel_release: Option<String>,
    /// Why it ended, if it has.
    pub end: Option<EndReason>,
    /// It did not end in time and was killed.
    pub forced: bool,
    /// The last of the guest's console, if it has ended.
    pub console_tail: Option<String>,
}

impl SandboxHandle {
    pub(crate) async fn find(home: &Home, name: &str) -> MicrosandboxResult<Self> {
        let missing = || MicrosandboxError::SandboxNotFound(name.to_owned());
        // A name that cannot be is one that nothing has.
        home.sandbox_dir(name).map_err(|_| missing())?;
        let catalogue = home.existing_catalogue()?.ok_or_else(missing)?;
        let row = catalogue.sandbox(name).await?.ok_or_else(missing)?;
        let handle = Self::new(home, row)?;
        if handle.is_over() { Err(missing()) } else { Ok(handle) }
    }

    /// An ephemeral sandbox whose run is over is gone; its row goes with the next command.
    fn is_over(&self) -> bool {
        self.row.ephemeral && !self.status.is_alive()
    }

    /// Removes what an ephemeral sandbox has left behind, if it still is there.
    pub(crate) async fn clear_away(home: &Home, name: &str) -> MicrosandboxResult<()> {
        let Some(row) = home.catalogue().await?.sandbox(name).await? else { return Ok(()) };
        let handle = Self::new(home, row)?;
        if !handle.is_over() {
            return Ok(());
        }
        handle.remove_unless_in_use().await.map(drop)
    }

    /// Removes it, unless somebody else is at it or was faster; says whether it did.
    pub(crate) async fn remove_unless_in_use(&self) -> MicrosandboxResult<bool> {
        match self.remove().await {
            Err(
                MicrosandboxError::SandboxBusy(_)
                | MicrosandboxError::SandboxNotFound(_)
                | MicrosandboxError::SandboxStillRunning(_),
            ) => Ok(false),
            removed => removed.map(|()| true),
        }
    }

    pub(crate) async fn all(home: &Home, filter: SandboxFilter) -> MicrosandboxResult<Vec<Self>> {
        let Some(catalogue) = home.existing_catalogue()? else { return Ok(Vec::new()) };
        let rows = catalogue.sandboxes(&filter.into_query()).await?;
        let handles: MicrosandboxResult<Vec<Self>> =
            rows.into_iter().map(|row| Self::new(home, row)).collect();
        Ok(handles?.into_iter().filter(|handle| !handle.is_over()).collect())
    }

    fn new(home: &Home, row: SandboxRow) -> MicrosandboxResult<Self> {
        let dir = home.sandbox_dir(&row.name)?;
        let status = status_of(&dir)?;
        Ok(Self { home: home.clone(), row, dir, status })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.row.name
    }

    /// What state it was in when this handle was made.
    pub fn status(&self) -> SandboxStatus {
        self.status
    }

    /// Its definition as stored.
    pub fn config_json(&self) -> &str {
        &self.row.config_json
    }

    /// Its definition.
    ///
    /// # Errors
    /// [`MicrosandboxError::Json`] when another version stored something else.
    pub fn config(&self) -> MicrosandboxResult<SandboxConfig> {
        create::from_json(&self.row)
    }

    /// When it was created.
    pub fn created_at(&self) -> Option<DateTime<Utc>> {
        Some(self.row.created_at.into())
    }

    /// When its definition last changed.
    pub fn updated_at(&self) -> Option<DateTime<Utc>> {
        Some(self.row.updated_at.into())
    }

    /// Its last run, if it ever ran.
    ///
    /// # Errors
    /// [`MicrosandboxError::Runtime`] when the records cannot be read.
    pub fn last_run(&self) -> MicrosandboxResult<Option<RunInfo>> {
        let Some(run) = self.dir.run_record()? else { return Ok(None) };
        let exit = self.dir.last_end()?.filter(|(of, _)| of.run_id == run.run_id);
        let forced = exit.as_ref().is_some_and(|(_, exit)| exit.forced);
        let (end, console_tail) = exit.map(|(_, exit)| (exit.reason, exit.console_tail)).unzip();
        Ok(Some(RunInfo {
            vmm: run.vmm,
            accel: run.accel,
            confinement: run.confinement,
            started_at: run.started_at,
            origin: run.origin,
            boot: run.boot,
            kernel_release: run.guest.map(|guest| guest.kernel_release),
            end,
            forced,
            console_tail,
        }))
    }

    /// The file a log is in; it need not exist.
    pub fn log_path(&self, source: LogSource) -> PathBuf {
        match source {
            LogSource::Kernel => self.dir.kernel_log_path(),
            LogSource::Runtime => self.dir.runtime_log_path(),
            LogSource::Stderr | LogSource::Stdout => self.dir.exec_log_path(),
        }
    }

    /// What its logs hold, running or not. Changes nothing.
    ///
    /// # Errors
    /// [`MicrosandboxError::File`] when a log cannot be read; one that was never written is empty.
    pub async fn logs(&self, options: &LogOptions) -> MicrosandboxResult<Vec<LogEntry>> {
        logs::read(&self.dir, options).await
    }

    /// What its logs hold, and what comes until the run ends.
    ///
    /// # Errors
    /// As [`SandboxHandle::logs`].
    pub async fn log_stream(&self, options: &LogStreamOptions) -> MicrosandboxResult<LogStream> {
        LogStream::begin(&self.dir, options).await
    }

    /// The directory of its disk, records and logs.
    pub fn path(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Starts it; it ends with this process.
    ///
    /// # Errors
    /// As [`Sandbox::start`].
    pub async fn start(&self) -> MicrosandboxResult<Sandbox> {
        create::start(&self.home, &self.row, Mode::Attached).await
    }

    /// Starts it; it lives on after this process.
    ///
    /// # Errors
    /// As [`Sandbox::start`].
    pub async fn start_detached(&self) -> MicrosandboxResult<Sandbox> {
        create::start(&self.home, &self.row, Mode::Detached).await
    }

    /// Connects to it while it runs. Dropping what this gives leaves it running.
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxNotRunning`].
    pub async fn connect(&self) -> MicrosandboxResult<Sandbox> {
        let client = match AgentClient::connect(&self.dir).await {
            Err(microsandbox_runtime::Error::Connect { .. }) => {
                let status = status_of(&self.dir)?;
                return Err(MicrosandboxError::SandboxNotRunning {
                    name: self.row.name.clone(),
                    status,
                });
            }
            other => other?,
        };
        Ok(Sandbox::new(self.config()?, self.dir.clone(), client, None))
    }

    /// Has it stand still. See [`Sandbox::pause`].
    ///
    /// # Errors
    /// As [`Sandbox::pause`]; [`MicrosandboxError::SandboxNotRunning`].
    pub async fn pause(&self) -> MicrosandboxResult<()> {
        self.connect().await?.pause().await
    }

    /// Has it go on. See [`Sandbox::resume`].
    ///
    /// # Errors
    /// As [`SandboxHandle::pause`].
    pub async fn resume(&self) -> MicrosandboxResult<()> {
        self.connect().await?.resume().await
    }

    /// What it uses now. See [`Sandbox::metrics`].
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxNotRunning`].
    pub async fn metrics(&self) -> MicrosandboxResult<SandboxMetrics> {
        self.connect().await?.metrics().await
    }

    /// Ends it in order; one that does not run is left as it is. See [`Sandbox::stop`].
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn stop(&self) -> MicrosandboxResult<()> {
        self.stop_within(STOP_TIMEOUT).await.map(drop)
    }

    /// As [`SandboxHandle::stop`] with another time for the orderly end; says how it went.
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn stop_within(&self, timeout: Duration) -> MicrosandboxResult<SandboxStopResult> {
        let client = match AgentClient::connect(&self.dir).await {
            Ok(client) => {
                client.stop(timeout);
                end::in_time(&client, timeout).await?;
                Some(client)
            }
            // No relay: it is booting, ending, or not running at all.
            Err(microsandbox_runtime::Error::Connect { .. }) => {
                let dir = self.dir.clone();
                on_thread("end-supervisor", move || dir.end_supervisor()).await?;
                None
            }
            Err(error) => return Err(error.into()),
        };
        let result = end::result(&self.home, &self.row.name, &self.dir, client.as_ref()).await?;
        if self.row.ephemeral {
            Self::clear_away(&self.home, &self.row.name).await?;
        }
        Ok(result)
    }

    /// Waits until it does not run; one that does not run is not waited for.
    ///
    /// # Errors
    /// [`MicrosandboxError::Runtime`] when its records cannot be read.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait_until_stopped(&self) -> MicrosandboxResult<SandboxStopResult> {
        let client = match AgentClient::connect(&self.dir).await {
            Ok(client) => {
                client.closed().await;
                Some(client)
            }
            // No relay: it is booting, ending, or not running at all.
            Err(microsandbox_runtime::Error::Connect { .. }) => {
                let dir = self.dir.clone();
                on_thread("await-end", move || dir.wait_until_free()).await?;
                None
            }
            Err(error) => return Err(error.into()),
        };
        end::result(&self.home, &self.row.name, &self.dir, client.as_ref()).await
    }

    /// Ends it at once. What the guest had not yet written to its disk is lost.
    ///
    /// # Errors
    /// As [`Sandbox::stop`].
    pub async fn kill(&self) -> MicrosandboxResult<()> {
        self.stop_within(Duration::ZERO).await.map(drop)
    }

    /// Takes a snapshot of its disk while it is stopped. See [`Snapshot::create`].
    ///
    /// # Errors
    /// As [`Snapshot::create`].
    pub async fn snapshot(&self, name: impl Into<String>) -> MicrosandboxResult<Snapshot> {
        Snapshot::builder(name).from_sandbox(self.name()).create().await
    }

    /// Removes it while it is stopped: definition, disk, logs.
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxStillRunning`], [`MicrosandboxError::SandboxBusy`]; nothing is
    /// removed then. [`MicrosandboxError::SandboxNotFound`] when another command was faster.
    pub async fn remove(&self) -> MicrosandboxResult<()> {
        let lock =
            self.dir.create_locked().map_err(|error| in_use(&self.dir, &self.row.name, error))?;
        step::reached("remove.locked");
        let catalogue = self.home.catalogue().await?;
        let now = catalogue.sandbox(&self.row.name).await?;
        if now.is_none() {
            // Taking the lock has made the directory again.
            self.dir.remove(&lock)?;
        }
        if now.is_none_or(|now| now.id != self.row.id) {
            return Err(MicrosandboxError::SandboxNotFound(self.row.name.clone()));
        }
        history::keep(&catalogue, &self.row, &self.dir, &lock).await?;
        // The row first: a directory without one is what the next command clears away.
        catalogue.remove_sandbox(self.row.id).await?;
        step::reached("remove.undefined");
        self.dir.remove(&lock)?;
        Ok(())
    }
}

fn status_of(dir: &SandboxDir) -> MicrosandboxResult<SandboxStatus> {
    let held = dir.is_held()?;
    Ok(reconcile(held, dir.run_record()?.as_ref(), dir.exit_record()?.as_ref()))
}

/// What it means that a sandbox is locked: it runs, or another command is at work on it.
pub(crate) fn in_use(
    dir: &SandboxDir,
    name: &str,
    error: microsandbox_runtime::Error,
) -> MicrosandboxError {
    if !matches!(error, microsandbox_runtime::Error::Locked { .. }) {
        return error.into();
    }
    match status_of(dir) {
        Ok(SandboxStatus::Draining | SandboxStatus::Paused | SandboxStatus::Running) => {
            MicrosandboxError::SandboxStillRunning(name.to_owned())
        }
        _ => MicrosandboxError::SandboxBusy(name.to_owned()),
    }
}
