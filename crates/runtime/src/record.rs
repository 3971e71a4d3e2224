//! What a run leaves behind: `run.json` while and after it runs, `exit.json` once it has ended.
//!
//! Written by the supervisor alone, with rename; read by anyone, with no lock.

use std::{fmt, io, os::unix::process::ExitStatusExt, process::ExitStatus};

use chrono::{DateTime, Utc};
use microsandbox_protocol::{BootStage, Ready};
use serde::{Deserialize, Serialize};

use crate::{Accel, CLONE_HOOK, ConfinementRecord, Error, VmmKind};

/// The last run of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Names this run; `exit.json` of the same run repeats it.
    pub run_id: String,
    /// Process id of the supervisor. Says something only while the lock is held.
    pub pid: u32,
    /// Process id of the VMM, once started.
    pub vmm_pid: Option<u32>,
    /// Which VMM.
    pub vmm: VmmKind,
    /// How guest code is executed.
    pub accel: Accel,
    /// When the supervisor began.
    pub started_at: DateTime<Utc>,
    /// When the guest took commands.
    pub ready_at: Option<DateTime<Utc>>,
    /// What its machine began as; none until that was decided.
    #[serde(default)]
    pub origin: Option<Origin>,
    /// Templates that were tried and of no use.
    #[serde(default)]
    pub failed_templates: Vec<FailedTemplate>,
    /// Host times of the boot.
    pub boot: BootTimes,
    /// What the guest said of itself.
    pub guest: Option<Ready>,
    /// How its processes are confined, once the VMM was started.
    #[serde(default)]
    pub confinement: Option<ConfinementRecord>,
    /// An orderly end has begun.
    pub stopping: bool,
    /// The guest stands still.
    #[serde(default)]
    pub paused: bool,
}

/// When the steps of a start were done, by the host's clock: microseconds since it was asked for. A
/// step that there was not is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootTimes {
    /// It was known which guest, program and VMM to use.
    pub found_us: u64,
    /// The image was there.
    pub image_us: u64,
    /// The catalogue was open, and what others left was cleared away.
    pub catalogue_us: u64,
    /// The writable disk was there.
    pub disk_us: u64,
    /// The sandbox was on record, and its supervisor was asked for.
    pub launch_us: u64,
    /// The supervisor had its configuration.
    pub supervisor_us: u64,
    /// The VMM process was started.
    pub vmm_us: u64,
    /// It had become the VMM's program; 0 where the VMM is a library.
    pub exec_us: u64,
    /// The agent's first frame arrived.
    pub hello_us: u64,
    /// The agent said it takes commands.
    pub agent_ready_us: u64,
    /// An exec had gone all the way and back.
    pub ready_us: u64,
}

/// What the machine of a run began as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum Origin {
    /// It booted from the beginning.
    Cold {
        /// Why it did not go on from a template.
        #[serde(flatten)]
        why: ColdReason,
    },
    /// It went on from a template of its shape, with the root of its image mounted.
    ImageTemplate {
        /// Names the shape.
        key: String,
    },
    /// It went on from a machine that was saved while it ran.
    Saved,
    /// It went on from a template of its shape.
    Template {
        /// Names the shape.
        key: String,
    },
}

/// A template that was of no use to a start. The launcher removes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedTemplate {
    /// Names the shape.
    pub key: String,
    /// What was wrong.
    pub detail: String,
}

/// Why a machine booted from the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "because")]
#[non_exhaustive]
pub enum ColdReason {
    /// The definition or the environment asks for it.
    Declined,
    /// It has devices of its own, which nothing can be saved with.
    Devices,
    /// The VMM can restore nothing.
    Driver,
    /// There was no template of its shape.
    NotBuilt,
    /// There was one that could not be used; it has been removed.
    Unusable {
        /// What was wrong.
        detail: String,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// The run, as in [`RunRecord::run_id`].
    pub run_id: String,
    /// Why.
    pub reason: EndReason,
    /// When.
    pub at: DateTime<Utc>,
    /// The orderly end did not come in time and the VMM was killed.
    pub forced: bool,
    /// How the VMM process ended, when it ran.
    pub vmm_exit: Option<VmmExit>,
    /// The last of the guest's console, lossy UTF-8, at most 8 KiB.
    pub console_tail: String,
}

/// Why a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
#[non_exhaustive]
pub enum EndReason {
    /// The guest broke the protocol or stopped answering.
    AgentLost {
        /// What it did.
        detail: String,
    },
    /// It never took commands.
    BootFailed {
        /// The step that failed.
        step: BootStep,
        /// What happened.
        detail: String,
        /// Error number of the kernel, the guest's or the host's, if one reported one.
        #[serde(default)]
        errno: Option<i32>,
    },
    /// The host's disk has no room for what the sandbox must write to run.
    DiskFull {
        /// What could not be written.
        detail: String,
    },
    /// The guest had no memory left and could not go on.
    GuestOutOfMemory {
        /// The line of the console that says so.
        line: String,
    },
    /// The guest powered itself off.
    GuestPoweredOff,
    /// The guest reset itself, and nobody had asked it to end.
    GuestReset,
    /// Nobody had used it for as long as its definition allows.
    Idle,
    /// The guest kernel panicked.
    KernelPanic {
        /// The line of the console that says so.
        line: String,
    },
    /// It had run for as long as its definition allows.
    MaxDuration,
    /// The process it was attached to is gone.
    OwnerExited,
    /// Somebody asked for it.
    StopRequested,
    /// The supervisor was killed and took the VM along. Never in `exit.json`: found by who looks next.
    SupervisorKilled,
    /// The supervisor was asked to end by a signal.
    Terminated,
    /// The VMM died of a signal it did not get from the supervisor.
    VmmCrashed {
        /// The signal's number.
        signal: i32,
    },
    /// The VMM gave up.
    VmmFailed {
        /// Its exit code.
        code: i32,
        /// The last it said.
        detail: String,
    },
}

impl EndReason {
    /// Whether this is an end somebody wanted.
    pub const fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::GuestPoweredOff
                | Self::Idle
                | Self::MaxDuration
                | Self::OwnerExited
                | Self::StopRequested
                | Self::Terminated
        )
    }

    /// What a panic of the guest kernel, as its console tells it, comes from (`mm/oom_kill.c`).
    pub(crate) fn of_panic(line: String) -> Self {
        let out_of_memory = ["Out of memory", "deadlocked on memory"];
        if out_of_memory.iter().any(|words| line.contains(words)) {
            return Self::GuestOutOfMemory { line };
        }
        Self::KernelPanic { line }
    }

    /// What kept a run from being begun.
    pub(crate) fn of_preparation(error: &Error) -> Self {
        let detail = error.to_string();
        match error {
            Error::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Self::DiskFull { detail }
            }
            Error::File { source, .. } => {
                Self::BootFailed { step: BootStep::Prepare, detail, errno: source.raw_os_error() }
            }
            _ => Self::BootFailed { step: BootStep::Prepare, detail, errno: None },
        }
    }

    /// Its stable name: what [`EndReason`] is serialised under as `kind`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::AgentLost { .. } => "agent_lost",
            Self::BootFailed { .. } => "boot_failed",
            Self::DiskFull { .. } => "disk_full",
            Self::GuestOutOfMemory { .. } => "guest_out_of_memory",
            Self::GuestPoweredOff => "guest_powered_off",
            Self::GuestReset => "guest_reset",
            Self::Idle => "idle",
            Self::KernelPanic { .. } => "kernel_panic",
            Self::MaxDuration => "max_duration",
            Self::OwnerExited => "owner_exited",
            Self::StopRequested => "stop_requested",
            Self::SupervisorKilled => "supervisor_killed",
            Self::Terminated => "terminated",
            Self::VmmCrashed { .. } => "vmm_crashed",
            Self::VmmFailed { .. } => "vmm_failed",
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::BootFailed { step: BootStep::Vmm, .. }
            | Self::VmmCrashed { .. }
            | Self::VmmFailed { .. } => Some(
                "`msb doctor` checks the VMM; its words are in `msb logs --source runtime` of a \
                 sandbox that is still there"
                    .into(),
            ),
            Self::DiskFull { .. } => Some(
                "make room on the file system that holds MSB_HOME; nothing else was lost".into(),
            ),
            Self::GuestOutOfMemory { .. } => Some("give the sandbox more memory".into()),
            Self::BootFailed { step: BootStep::Restore, .. } => Some(
                "a saved machine goes on only with the guest, the VMM and the processor that it was \
                 saved with"
                    .into(),
            ),
            Self::BootFailed { .. } | Self::KernelPanic { .. } => {
                Some("the console's last lines say more; try more memory or `msb doctor`".into())
            }
            _ => None,
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AgentLost { detail } => write!(f, "lost the guest's agent: {detail}"),
            Self::BootFailed { step, detail, .. } => write!(f, "{step}: {detail}"),
            Self::DiskFull { detail } => write!(f, "the host's disk is full: {detail}"),
            Self::GuestOutOfMemory { line } => write!(f, "the guest ran out of memory: {line}"),
            Self::GuestPoweredOff => write!(f, "the guest powered off"),
            Self::GuestReset => write!(f, "the guest reset itself"),
            Self::Idle => write!(f, "it was idle for as long as it may be"),
            Self::KernelPanic { line } => write!(f, "the guest kernel panicked: {line}"),
            Self::MaxDuration => write!(f, "it ran for as long as it may"),
            Self::OwnerExited => write!(f, "its owner exited"),
            Self::StopRequested => write!(f, "stopped on request"),
            Self::SupervisorKilled => write!(f, "its supervisor was killed"),
            Self::Terminated => write!(f, "its supervisor was terminated"),
            Self::VmmCrashed { signal } => write!(f, "the VMM was killed by signal {signal}"),
            Self::VmmFailed { code, detail } => write!(f, "the VMM exited with {code}: {detail}"),
        }
    }
}

/// Steps of a boot as the host sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BootStep {
    /// Writing the records of the run.
    Prepare,
    /// Starting the VMM process.
    Vmm,
    /// Going on from a saved state.
    Restore,
    /// The guest kernel, up to the agent's first frame.
    Kernel,
    /// The agent putting the machine together.
    Guest(BootStage),
    /// A first exec, all the way and back.
    SelfTest,
    /// What the sandbox runs when it is a copy of another.
    CloneHook,
}

impl fmt::Display for BootStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prepare => write!(f, "preparing the run"),
            Self::Vmm => write!(f, "starting the VMM"),
            Self::Restore => write!(f, "restoring the machine"),
            Self::Kernel => write!(f, "booting the guest kernel"),
            Self::Guest(stage) => write!(f, "setting the guest up ({stage:?})"),
            Self::SelfTest => write!(f, "running a first command"),
            Self::CloneHook => write!(f, "running {CLONE_HOOK}"),
        }
    }
}

/// How the VMM process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmmExit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl VmmExit {
    /// What the kernel says of a process that was waited for.
    pub(crate) fn of(status: ExitStatus) -> Self {
        status.signal().map_or_else(|| Self::Code(status.code().unwrap_or(-1)), Self::Signal)
    }
}
