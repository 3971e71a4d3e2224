//! Runs that have ended: kept in the catalogue when their records give way, also after removal.
//!
//! A run's records lie in the sandbox's directory until the next run or the removal; whoever is about
//! to take them away, and so holds the sandbox, puts them into the catalogue first.

use chrono::{DateTime, Utc};
use microsandbox_db::{Catalogue, Run, SandboxRow};
use microsandbox_runtime::{EndReason, ExitRecord, SandboxDir, SandboxLock, VmmExit};

use crate::{MicrosandboxError, MicrosandboxResult, home::Home};

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastRun {
    /// Name the sandbox had.
    pub name: String,
    /// When the run began.
    pub started_at: DateTime<Utc>,
    /// When it ended, or was found to have ended.
    pub ended_at: DateTime<Utc>,
    /// Why.
    pub reason: EndReason,
    /// It did not end in time and was killed.
    pub forced: bool,
    /// The last of the guest's console, at most 8 KiB.
    pub console_tail: String,
}

/// Keeps the last run of a sandbox that the caller holds, if it had one.
pub(crate) async fn keep(
    catalogue: &Catalogue,
    row: &SandboxRow,
    dir: &SandboxDir,
    lock: &SandboxLock,
) -> MicrosandboxResult<()> {
    let Some((run, exit)) = dir.last_end_held(lock)? else { return Ok(()) };
    let (code, signal) = match exit.vmm_exit {
        Some(VmmExit::Code(code)) => (Some(code), None),
        Some(VmmExit::Signal(signal)) => (None, Some(signal)),
        None => (None, None),
    };
    let detail_json = serde_json::to_string(&exit)
        .map_err(|source| MicrosandboxError::Json { name: row.name.clone(), source })?;
    let run = Run {
        sandbox_name: row.name.clone(),
        sandbox_id: Some(row.id),
        started_at: run.started_at.into(),
        ended_at: exit.at.into(),
        reason: exit.reason.kind().to_owned(),
        exit_code: code,
        exit_signal: signal,
        detail_json,
    };
    catalogue.record_run(&run).await?;
    Ok(())
}

/// Whether the sandbox has taken commands in the run that its records are of, or may have in an earlier
/// one: all that is known of those is how they ended.
pub(crate) async fn has_begun(
    catalogue: &Catalogue,
    row: &SandboxRow,
    dir: &SandboxDir,
) -> MicrosandboxResult<bool> {
    if dir.run_record()?.is_some_and(|run| run.ready_at.is_some()) {
        return Ok(true);
    }
    let runs = catalogue.runs_of(&row.name).await?;
    for run in runs.iter().filter(|run| run.sandbox_id == Some(row.id)) {
        if !matches!(exit_record(run)?.reason, EndReason::BootFailed { .. }) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The runs of a name, or of all.
pub(crate) async fn of(home: &Home, name: Option<&str>) -> MicrosandboxResult<Vec<PastRun>> {
    let Some(catalogue) = home.existing_catalogue()? else { return Ok(Vec::new()) };
    let runs = match name {
        Some(name) => catalogue.runs_of(name).await?,
        None => catalogue.runs().await?,
    };
    runs.into_iter().map(PastRun::new).collect()
}

/// How the latest run of that name ended, if one is remembered.
pub(crate) async fn last_end(home: &Home, name: &str) -> MicrosandboxResult<Option<ExitRecord>> {
    let Some(catalogue) = home.existing_catalogue()? else { return Ok(None) };
    catalogue.runs_of(name).await?.first().map(exit_record).transpose()
}

fn exit_record(run: &Run) -> MicrosandboxResult<ExitRecord> {
    serde_json::from_str(&run.detail_json)
        .map_err(|source| MicrosandboxError::Json { name: run.sandbox_name.clone(), source })
}

impl PastRun {
    fn new(run: Run) -> MicrosandboxResult<Self> {
        let exit = exit_record(&run)?;
        Ok(Self {
            name: run.sandbox_name,
            started_at: run.started_at.into(),
            ended_at: run.ended_at.into(),
            reason: exit.reason,
            forced: exit.forced,
            console_tail: exit.console_tail,
        })
    }
}
