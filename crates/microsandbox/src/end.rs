//! How sandboxes end: waiting for it, and the one place that knows where it is told.
//!
//! ```text
//!  the supervisor's last word on a link ── whoever was connected hears it, of exactly that run
//!  run.json, exit.json                  ── the last run, until the next one or the removal
//!  the catalogue                        ── runs whose records are gone
//! ```

use std::{process::ExitStatus as ProcessStatus, time::Duration};

use chrono::{DateTime, Utc};
use microsandbox_runtime::{AgentClient, EndReason, ExitRecord, SandboxDir, VmmExit};

use crate::{MicrosandboxResult, SandboxStatus, history, home::Home, thread::on_thread};

/// Time beyond an orderly end's own in which the supervisor must have written the end down.
const RECORD_GRACE: Duration = Duration::from_secs(15);

/// How a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStopResult {
    /// Its name.
    pub name: String,
    /// What it is now: stopped or crashed; created when it never ran.
    pub status: SandboxStatus,
    /// Exit code of the VMM, when it exited.
    pub exit_code: Option<i32>,
    /// Signal that ended the VMM, when one did.
    pub signal: Option<i32>,
    /// When it ended.
    pub observed_at: DateTime<Utc>,
    /// Why; `None` when it never ran.
    pub reason: Option<EndReason>,
    /// It did not end in time and was killed.
    pub forced: bool,
}

impl SandboxStopResult {
    fn new(name: &str, end: Option<ExitRecord>) -> Self {
        let status = match &end {
            Some(end) if end.reason.is_orderly() => SandboxStatus::Stopped,
            Some(_) => SandboxStatus::Crashed,
            None => SandboxStatus::Created,
        };
        let (exit_code, signal) = match end.as_ref().and_then(|end| end.vmm_exit) {
            Some(VmmExit::Code(code)) => (Some(code), None),
            Some(VmmExit::Signal(signal)) => (None, Some(signal)),
            None => (None, None),
        };
        Self {
            name: name.to_owned(),
            status,
            exit_code,
            signal,
            observed_at: end.as_ref().map_or_else(Utc::now, |end| end.at),
            forced: end.as_ref().is_some_and(|end| end.forced),
            reason: end.map(|end| end.reason),
        }
    }

    /// An orderly end counts as success, however the VMM process was put away after it.
    pub(crate) fn process_status(&self) -> ProcessStatus {
        use std::os::unix::process::ExitStatusExt;
        match (self.status, self.signal, self.exit_code) {
            (SandboxStatus::Stopped, ..) => ProcessStatus::from_raw(0),
            (_, Some(signal), _) => ProcessStatus::from_raw(signal),
            (_, _, code) => ProcessStatus::from_raw(code.unwrap_or(1) << 8),
        }
    }
}

/// Waits for a sandbox that was told to end within `timeout`.
pub(crate) async fn in_time(client: &AgentClient, timeout: Duration) -> MicrosandboxResult<()> {
    let late = |_| microsandbox_runtime::Error::Closed { during: "the end of the sandbox" };
    tokio::time::timeout(timeout + RECORD_GRACE, client.closed()).await.map_err(late)?;
    Ok(())
}

/// How the run that `client` was connected to, else the last one, ended, as far as that is told
/// without asking the catalogue: `None` while it runs, where it never ran, and after a removal.
pub(crate) fn told(
    client: Option<&AgentClient>,
    dir: &SandboxDir,
) -> MicrosandboxResult<Option<ExitRecord>> {
    match client.and_then(AgentClient::end) {
        Some(end) => Ok(Some(end.clone())),
        None => Ok(dir.last_end()?.map(|(_, end)| end)),
    }
}

/// How a sandbox ended that runs no more, or is about to be gone.
pub(crate) async fn result(
    home: &Home,
    name: &str,
    dir: &SandboxDir,
    client: Option<&AgentClient>,
) -> MicrosandboxResult<SandboxStopResult> {
    if client.is_some_and(|client| client.end().is_none()) {
        // A link that closed without a last word: its supervisor was killed and lets go any moment.
        let dir = dir.clone();
        on_thread("await-end", move || dir.wait_until_free()).await?;
    }
    let end = match told(client, dir)? {
        None if dir.run_record()?.is_none() => history::last_end(home, name).await?,
        told => told,
    };
    Ok(SandboxStopResult::new(name, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_follows_how_it_was_wanted_and_then_the_vmm() {
        let end = |reason, vmm_exit| ExitRecord {
            run_id: "now".into(),
            reason,
            at: Utc::now(),
            forced: false,
            vmm_exit,
            console_tail: String::new(),
        };
        let (stopped, crashed) = (EndReason::StopRequested, EndReason::VmmCrashed { signal: 11 });
        for (end, status, code, signal) in [
            (Some(end(stopped, Some(VmmExit::Signal(9)))), SandboxStatus::Stopped, Some(0), None),
            (Some(end(crashed, Some(VmmExit::Signal(11)))), SandboxStatus::Crashed, None, Some(11)),
            (Some(end(EndReason::SupervisorKilled, None)), SandboxStatus::Crashed, Some(1), None),
            (None, SandboxStatus::Created, Some(1), None),
        ] {
            use std::os::unix::process::ExitStatusExt;
            let result = SandboxStopResult::new("a", end);
            let process = result.process_status();
            assert_eq!(result.status, status);
            assert_eq!((process.code(), process.signal()), (code, signal), "{result:?}");
        }
    }
}
