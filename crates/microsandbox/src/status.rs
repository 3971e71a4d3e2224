//! What state a sandbox is in, found out anew each time and never stored.

use microsandbox_runtime::{ExitRecord, RunRecord};
use serde::{Deserialize, Serialize};

/// State of a sandbox.
///
/// ```text
///  Created ─start→ Starting ─ready→ Running ─stop→ Draining ─exit→ Stopped
///                     │                │  └pause→ Paused ─resume→ Running
///                     └─boot failed────┴──────────── died ───────→ Crashed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SandboxStatus {
    /// Defined, never run.
    Created,
    /// Booting.
    Starting,
    /// Takes commands.
    Running,
    /// Ending in order.
    Draining,
    /// Held still.
    Paused,
    /// Ended as somebody wanted.
    Stopped,
    /// Ended otherwise; `exit.json` says how.
    Crashed,
}

impl SandboxStatus {
    /// Whether a process owns the sandbox.
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Starting | Self::Running | Self::Draining | Self::Paused)
    }
}

/// Finds the status: a held lock is life, the records tell the rest.
pub(crate) fn reconcile(
    held: bool,
    run: Option<&RunRecord>,
    exit: Option<&ExitRecord>,
) -> SandboxStatus {
    let exit = exit.filter(|exit| run.is_some_and(|run| run.run_id == exit.run_id));
    match (held, run, exit) {
        // The lock is taken before the run's record is written and freed after its end is.
        (true, None, _) | (true, _, Some(_)) => SandboxStatus::Starting,
        (true, Some(run), None) if run.stopping => SandboxStatus::Draining,
        (true, Some(run), None) if run.paused => SandboxStatus::Paused,
        (true, Some(run), None) if run.ready_at.is_some() => SandboxStatus::Running,
        (true, Some(_), None) => SandboxStatus::Starting,
        (false, None, _) => SandboxStatus::Created,
        (false, Some(_), Some(exit)) if exit.reason.is_orderly() => SandboxStatus::Stopped,
        // No exit record: the supervisor itself was killed.
        (false, Some(_), _) => SandboxStatus::Crashed,
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;
    use microsandbox_runtime::{Accel, BootTimes, EndReason, VmmKind};

    use super::*;

    fn run(ready: bool, stopping: bool) -> RunRecord {
        RunRecord {
            run_id: "now".into(),
            pid: 1,
            vmm_pid: None,
            vmm: VmmKind::Qemu,
            accel: Accel::Tcg,
            started_at: Utc::now(),
            ready_at: ready.then(Utc::now),
            origin: None,
            failed_templates: Vec::new(),
            boot: BootTimes::default(),
            guest: None,
            confinement: None,
            stopping,
            paused: false,
        }
    }

    fn exit(run_id: &str, reason: EndReason) -> ExitRecord {
        ExitRecord {
            run_id: run_id.into(),
            reason,
            at: Utc::now(),
            forced: false,
            vmm_exit: None,
            console_tail: String::new(),
        }
    }

    #[test]
    fn status_follows_lock_and_records() {
        use SandboxStatus::{Crashed, Created, Draining, Paused, Running, Starting, Stopped};
        let stopped = || Some(exit("now", EndReason::StopRequested));
        let crashed = || Some(exit("now", EndReason::VmmCrashed { signal: 11 }));
        let paused = |stopping| Some(RunRecord { paused: true, ..run(true, stopping) });
        let older = || Some(exit("before", EndReason::StopRequested));
        for (held, run, exit, status) in [
            (false, None, None, Created),
            (true, None, None, Starting),
            (true, Some(run(false, false)), None, Starting),
            (true, Some(run(false, false)), older(), Starting),
            (true, Some(run(true, false)), None, Running),
            (true, Some(run(true, false)), older(), Running),
            (true, Some(run(true, true)), None, Draining),
            (true, paused(false), None, Paused),
            (true, paused(false), older(), Paused),
            (true, paused(true), None, Draining),
            (false, paused(false), None, Crashed),
            (false, paused(false), stopped(), Stopped),
            (true, Some(run(true, true)), stopped(), Starting),
            (false, Some(run(true, true)), stopped(), Stopped),
            (false, Some(run(true, false)), crashed(), Crashed),
            (false, Some(run(true, false)), None, Crashed),
            (false, Some(run(true, false)), older(), Crashed),
        ] {
            assert_eq!(reconcile(held, run.as_ref(), exit.as_ref()), status, "{held} {run:?}");
        }
    }
}
