//! Errors of the public API.

use std::{path::PathBuf, time::Duration};

use microsandbox_runtime::{BootStep, EndReason, ExitRecord};

/// Result of the public API.
pub type MicrosandboxResult<T> = Result<T, MicrosandboxError>;

/// Why an operation on a sandbox or an image stopped.
///
/// [`MicrosandboxError::hint`] has the remedy, where one is known; the sources say what lies
/// beneath.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MicrosandboxError {
    /// A signal asked this process to end while it was attached to a command.
    #[error("ended by signal {signal}")]
    AttachInterrupted {
        /// The signal's number.
        signal: i32,
    },
    /// A sandbox did not come up.
    #[error("sandbox '{name}' did not start: {err}")]
    BootStart {
        /// Its name.
        name: String,
        /// What stopped it.
        err: Box<BootError>,
    },
    /// Files could not be copied: the host's side of it.
    #[error(transparent)]
    Copy(microsandbox_archive::Error),
    /// The catalogue of sandboxes could not be used.
    #[error(transparent)]
    Database(microsandbox_db::Error),
    /// A command could not be started in the guest.
    #[error(transparent)]
    ExecFailed(ExecFailed),
    /// A command was killed because its time was up.
    #[error("the command did not end within {0:?}")]
    ExecTimeout(Duration),
    /// A file of the home could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel reported.
        #[source]
        source: std::io::Error,
    },
    /// Root cannot run sandboxes of a home that is another user's.
    #[error("run sandboxes as root in {}, which belongs to user {owner}", home.display())]
    HomeOfAnother {
        /// The home.
        home: PathBuf,
        /// Number of the user.
        owner: u32,
    },
    /// An image operation stopped.
    #[error(transparent)]
    Image(microsandbox_image::Error),
    /// A value given by the caller is not possible.
    #[error("invalid config: {0}")]
    InvalidConfig(String),
    /// The stored definition of a sandbox cannot be read.
    #[error("read the definition of sandbox '{name}'")]
    Json {
        /// Its name.
        name: String,
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// No program is there to supervise sandboxes.
    #[error("find a program to supervise sandboxes: this one does not, and there is no `msb`")]
    ProgramNotFound,
    /// A process of a sandbox could not be started or reached.
    #[error(transparent)]
    Runtime(microsandbox_runtime::Error),
    /// A job has not ended, as it must have for this.
    #[error("job {0} is still running")]
    JobRunning(u64),
    /// A sandbox has no job of that number, or has it no more.
    #[error("the sandbox has no job {0}")]
    JobNotFound(u64),
    /// A file operation in the sandbox failed.
    #[error(transparent)]
    SandboxFs(FsError),
    /// A sandbox of that name exists.
    #[error(
        "sandbox '{0}' already exists; remove it, start the stopped sandbox, or recreate with .replace()"
    )]
    SandboxAlreadyExists(String),
    /// Another command works on the sandbox at this moment.
    #[error("sandbox '{0}' is in use by another command")]
    SandboxBusy(String),
    /// A sandbox ended while something was to be done in it.
    #[error("sandbox '{name}' ended: {reason}")]
    SandboxEnded {
        /// Its name.
        name: String,
        /// Why, as its exit record says.
        reason: EndReason,
    },
    /// No sandbox has that name.
    #[error("no sandbox is named '{0}'")]
    SandboxNotFound(String),
    /// The sandbox must run for this.
    #[error("sandbox '{name}' is not running (status: {status:?})")]
    SandboxNotRunning {
        /// Its name.
        name: String,
        /// What it is instead.
        status: crate::SandboxStatus,
    },
    /// The sandbox stands still, so it can begin nothing.
    #[error("sandbox '{0}' is paused")]
    SandboxPaused(String),
    /// The sandbox must be stopped for this.
    #[error("sandbox '{0}' is still running")]
    SandboxStillRunning(String),
    /// The disk of a sandbox is gone.
    #[error("sandbox '{name}' cannot start: sandbox state missing: {}", path.display())]
    SandboxStateMissing {
        /// Its name.
        name: String,
        /// The disk.
        path: PathBuf,
    },
    /// The image a sandbox was made from is not in the store any more.
    #[error("sandbox '{name}' cannot start: its image {digest} is not in the store")]
    SandboxImageMissing {
        /// Its name.
        name: String,
        /// Digest of the manifest it pins.
        digest: String,
    },
    /// A snapshot operation stopped.
    #[error(transparent)]
    Snapshot(microsandbox_snapshot::Error),
    /// A snapshot of that name exists.
    #[error("snapshot '{0}' already exists")]
    SnapshotAlreadyExists(String),
    /// The image beneath a snapshot is not in the store and could not be had.
    #[error("snapshot '{snapshot}' needs the image {reference} with digest {digest}")]
    SnapshotImageMissing {
        /// The snapshot's name.
        snapshot: String,
        /// What the image was called.
        reference: String,
        /// Digest of its manifest.
        digest: String,
        /// Why it could not be had.
        #[source]
        source: Box<Self>,
    },
    /// A snapshot is not what its digests say.
    #[error("{0}")]
    SnapshotIntegrity(String),
    /// There is no such snapshot.
    #[error("no snapshot is named '{0}'")]
    SnapshotNotFound(String),
    /// The sandbox must be stopped for a snapshot of its disk.
    #[error("sandbox '{0}' is running, and a snapshot of its disk alone would be torn")]
    SnapshotSandboxRunning(String),
    /// What was asked for cannot be done here.
    #[error("{feature} is available only {available_when}")]
    Unsupported {
        /// What was asked for.
        feature: String,
        /// What it needs.
        available_when: String,
    },
}

impl MicrosandboxError {
    /// Its stable name, for programs: that of the variant in snake case.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::AttachInterrupted { .. } => "attach_interrupted",
            Self::BootStart { .. } => "boot_start",
            Self::Copy(_) => "copy",
            Self::Database(_) => "database",
            Self::ExecFailed(_) => "exec_failed",
            Self::ExecTimeout(_) => "exec_timeout",
            Self::File { .. } => "file",
            Self::HomeOfAnother { .. } => "home_of_another",
            Self::Image(_) => "image",
            Self::InvalidConfig(_) => "invalid_config",
            Self::JobNotFound(_) => "job_not_found",
            Self::JobRunning(_) => "job_running",
            Self::Json { .. } => "json",
            Self::ProgramNotFound => "program_not_found",
            Self::Runtime(_) => "runtime",
            Self::SandboxAlreadyExists(_) => "sandbox_already_exists",
            Self::SandboxBusy(_) => "sandbox_busy",
            Self::SandboxEnded { .. } => "sandbox_ended",
            Self::SandboxFs(_) => "sandbox_fs",
            Self::SandboxImageMissing { .. } => "sandbox_image_missing",
            Self::SandboxNotFound(_) => "sandbox_not_found",
            Self::SandboxNotRunning { .. } => "sandbox_not_running",
            Self::SandboxPaused(_) => "sandbox_paused",
            Self::SandboxStateMissing { .. } => "sandbox_state_missing",
            Self::SandboxStillRunning(_) => "sandbox_still_running",
            Self::Snapshot(_) => "snapshot",
            Self::SnapshotAlreadyExists(_) => "snapshot_already_exists",
            Self::SnapshotImageMissing { .. } => "snapshot_image_missing",
            Self::SnapshotIntegrity(_) => "snapshot_integrity",
            Self::SnapshotNotFound(_) => "snapshot_not_found",
            Self::SnapshotSandboxRunning(_) => "snapshot_sandbox_running",
            Self::Unsupported { .. } => "unsupported",
        }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::BootStart { err, .. } => err.hint.clone(),
            Self::Database(source) => source.hint(),
            Self::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Some("make room on the file system that holds MSB_HOME".into())
            }
            Self::HomeOfAnother { owner, .. } => Some(format!(
                "run it as that user (sudo -u '#{owner}'), or with a home of root's own (MSB_HOME): \
                 the processes of a sandbox have no privileges, not even root's"
            )),
            Self::Image(source) => source.hint(),
            Self::ProgramNotFound => Some(
                "call microsandbox::reexec::init() first in main, or install msb with `cargo xtask \
                 setup` (MSB_PATH names one elsewhere)"
                    .into(),
            ),
            Self::Runtime(source) => source.hint(),
            Self::SandboxAlreadyExists(name) => Some(format!("msb rm {name}")),
            Self::JobRunning(id) => Some(format!("msb jobs kill NAME {id}")),
            Self::JobNotFound(_) => Some("`msb jobs ls NAME` shows those there are".into()),
            Self::SandboxBusy(_) => Some("wait for it to finish, then try again".into()),
            Self::SandboxNotFound(_) => Some("`msb ls` shows the sandboxes there are".into()),
            Self::SandboxNotRunning { name, .. } => Some(format!("msb start {name}")),
            Self::SandboxPaused(name) => Some(format!("msb resume {name}")),
            Self::SandboxStillRunning(name) => {
                Some(format!("msb stop {name}, or msb rm -f {name}"))
            }
            Self::SandboxStateMissing { name, .. } => Some(format!("msb rm {name}")),
            Self::SandboxImageMissing { .. } => Some("load or pull the same image again".into()),
            Self::Snapshot(source) => source.hint(),
            Self::SnapshotAlreadyExists(name) => {
                Some(format!("msb snapshot rm {name}, or --force to replace it"))
            }
            Self::SnapshotImageMissing { .. } => Some(
                "pull or load the same image, or import the snapshot from an archive made \
                 --with-image"
                    .into(),
            ),
            Self::SnapshotNotFound(_) => Some("`msb snapshot ls` shows those there are".into()),
            Self::SnapshotSandboxRunning(name) => {
                Some(format!("msb stop {name}, or --full for its memory, too"))
            }
            _ => None,
        }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

impl From<microsandbox_runtime::Error> for MicrosandboxError {
    fn from(error: microsandbox_runtime::Error) -> Self {
        match error {
            microsandbox_runtime::Error::Boot { name, record } => {
                Self::BootStart { name, err: Box::new(BootError::from(*record)) }
            }
            microsandbox_runtime::Error::Exec { program, failed } => {
                Self::ExecFailed(ExecFailed::new(&program, &failed))
            }
            microsandbox_runtime::Error::FileCall { ref failed } => {
                Self::SandboxFs(FsError::new(failed, error.to_string()))
            }
            microsandbox_runtime::Error::Incapable { action, .. } => Self::Unsupported {
                feature: format!("to {action} a sandbox"),
                available_when: "on QEMU, which MSB_VMM=qemu selects".into(),
            },
            microsandbox_runtime::Error::UnknownJob { id } => Self::JobNotFound(id),
            other => Self::Runtime(other),
        }
    }
}

impl From<microsandbox_db::Error> for MicrosandboxError {
    fn from(error: microsandbox_db::Error) -> Self {
        match error {
            microsandbox_db::Error::NameTaken { name } => Self::SandboxAlreadyExists(name),
            other => Self::Database(other),
        }
    }
}

impl From<microsandbox_image::Error> for MicrosandboxError {
    fn from(error: microsandbox_image::Error) -> Self {
        Self::Image(error)
    }
}

impl From<microsandbox_snapshot::Error> for MicrosandboxError {
    fn from(error: microsandbox_snapshot::Error) -> Self {
        use microsandbox_snapshot::Error as Snapshot;
        match error {
            Snapshot::AlreadyExists { name } => Self::SnapshotAlreadyExists(name),
            Snapshot::Name { .. } => Self::InvalidConfig(error.to_string()),
            Snapshot::NotFound { name } => Self::SnapshotNotFound(name),
            Snapshot::Manifest { ref source, .. } => {
                Self::SnapshotIntegrity(format!("{error}: {source}"))
            }
            error if error.is_damage() => Self::SnapshotIntegrity(error.to_string()),
            error => Self::Snapshot(error),
        }
    }
}

/// What stopped a boot, and the evidence.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct BootError {
    /// When it ended, RFC 3339.
    pub t: String,
    /// What was being done.
    pub stage: BootErrorStage,
    /// What happened, with the object it happened to.
    pub message: String,
    /// The last of the guest's console, at most 8 KiB.
    pub console_tail: String,
    /// Error number of the guest's kernel, or the host's, if one reported one.
    pub errno: Option<i32>,
    /// The remedy, where one is known.
    pub hint: Option<String>,
}

/// Steps of a boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootErrorStage {
    /// The guest kernel, up to its agent.
    Kernel,
    /// The agent putting file systems together.
    Mount,
    /// It was ended before it was up.
    Other,
    /// Writing the records of the run.
    Prepare,
    /// A first command, run as a test.
    SelfTest,
    /// The VMM process.
    Vmm,
}

impl BootErrorStage {
    /// Its stable name, for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Mount => "mount",
            Self::Other => "other",
            Self::Prepare => "prepare",
            Self::SelfTest => "self_test",
            Self::Vmm => "vmm",
        }
    }
}

impl From<ExitRecord> for BootError {
    fn from(record: ExitRecord) -> Self {
        let stage = match &record.reason {
            EndReason::BootFailed { step: BootStep::Prepare, .. } | EndReason::DiskFull { .. } => {
                BootErrorStage::Prepare
            }
            EndReason::BootFailed { step: BootStep::Vmm, .. }
            | EndReason::VmmCrashed { .. }
            | EndReason::VmmFailed { .. } => BootErrorStage::Vmm,
            EndReason::BootFailed { step: BootStep::Kernel, .. }
            | EndReason::GuestOutOfMemory { .. }
            | EndReason::KernelPanic { .. } => BootErrorStage::Kernel,
            EndReason::BootFailed { step: BootStep::Guest(_), .. } => BootErrorStage::Mount,
            EndReason::BootFailed { step: BootStep::SelfTest, .. } => BootErrorStage::SelfTest,
            _ => BootErrorStage::Other,
        };
        Self {
            t: record.at.to_rfc3339(),
            stage,
            message: record.reason.to_string(),
            errno: match record.reason {
                EndReason::BootFailed { errno, .. } => errno,
                _ => None,
            },
            hint: record.reason.hint(),
            console_tail: record.console_tail,
        }
    }
}

/// Why a command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExecFailed {
    /// What was wrong.
    pub kind: microsandbox_runtime::wire::ExecFailure,
    /// Error number of the guest kernel, if it reported one.
    pub errno: Option<i32>,
    /// The object it failed on.
    pub object: String,
    /// All of it as one sentence.
    pub message: String,
}

impl ExecFailed {
    fn new(program: &str, failed: &microsandbox_runtime::wire::ExecFailed) -> Self {
        use microsandbox_runtime::wire::ExecFailure as Failure;
        let object = &failed.object;
        let errno = (failed.errno != 0).then_some(failed.errno);
        let why = errno.map_or_else(String::new, |errno| {
            format!(": {}", std::io::Error::from_raw_os_error(errno))
        });
        let message = match failed.failure {
            Failure::NotFound => format!("{program}: no such command in the guest"),
            Failure::PermissionDenied => format!("{program}: permission denied"),
            Failure::NotExecutable => format!("{program}: not a program this machine runs"),
            Failure::BadCwd => format!("cannot enter the working directory {object}{why}"),
            Failure::BadArgs => format!("{program}: arguments or environment refused{why}"),
            Failure::ResourceLimit => format!("{program}: limit refused: {object}{why}"),
            Failure::BadUser => format!("no such user or group in the guest: {object}{why}"),
            Failure::OutOfMemory => format!("{program}: the guest has no memory for it"),
            Failure::Terminal => format!("{program}: no terminal could be opened{why}"),
            Failure::Paused => "the sandbox is paused and begins nothing".into(),
            Failure::ShuttingDown => "the sandbox is stopping and starts nothing more".into(),
            _ => format!("{program}: could not be started: {object}{why}"),
        };
        Self { kind: failed.failure, errno, object: object.clone(), message }
    }

    /// The code a shell gives for it: 127 not found, 126 not executable, 125 otherwise.
    pub fn shell_code(&self) -> i32 {
        use microsandbox_runtime::wire::ExecFailure as Failure;
        match self.kind {
            Failure::NotFound => 127,
            Failure::PermissionDenied | Failure::NotExecutable => 126,
            _ => 125,
        }
    }
}

/// Why a file operation in a sandbox failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct FsError {
    /// What was wrong.
    pub kind: microsandbox_runtime::wire::FileFailure,
    /// Error number of the guest kernel, if it reported one.
    pub errno: Option<i32>,
    /// What was being done.
    pub action: String,
    /// What it was done with, in the guest.
    pub path: PathBuf,
    /// All of it as one sentence.
    pub message: String,
}

impl FsError {
    fn new(failed: &microsandbox_runtime::wire::FileFailed, message: String) -> Self {
        use std::os::unix::ffi::OsStrExt;
        Self {
            kind: failed.failure,
            errno: (failed.errno != 0).then_some(failed.errno),
            action: failed.action.clone(),
            path: std::ffi::OsStr::from_bytes(&failed.path).into(),
            message,
        }
    }

    /// The error number as the standard library names it.
    pub fn io_kind(&self) -> std::io::ErrorKind {
        let errno = self.errno.map(std::io::Error::from_raw_os_error);
        errno.map_or(std::io::ErrorKind::Other, |error| error.kind())
    }
}
