//! Run untrusted workloads in local microVMs: no daemon, no root, no account.
//!
//! ```no_run
//! use microsandbox::Sandbox;
//!
//! #[tokio::main]
//! async fn main() -> anyhow::Result<()> {
//!     microsandbox::reexec::init();
//!     let sandbox = Sandbox::builder("demo").image("python").cpus(1).memory(512).create().await?;
//!     let output = sandbox.exec("python3", ["-c", "print(6 * 7)"]).await?;
//!     print!("{}", output.stdout()?);
//!     sandbox.stop().await?;
//!     Ok(())
//! }
//! ```
//!
//! A sandbox belongs to the process that created it and ends with it, however that process ends;
//! [`Sandbox::create_detached`] and [`Sandbox::detach`] make one that lives on. State is kept under
//! `$MSB_HOME`; every program and shell that uses the same home sees the same sandboxes.
#![forbid(unsafe_code)]

pub mod doctor;
pub mod env;
pub mod exec;
pub mod fs;
pub mod image;
pub mod jobs;
pub mod reexec;

mod attach;
mod builder;
#[cfg(feature = "embed-guest")]
mod carried;
mod clock;
mod config;
mod create;
mod detach;
mod end;
mod error;
mod filter;
mod handle;
mod history;
mod home;
mod link;
mod logs;
mod metrics;
mod names;
mod sandbox;
mod snapshot;
mod status;
mod terminal;
mod thread;

pub use attach::{AttachEnd, AttachOptionsBuilder};
pub use builder::SandboxBuilder;
pub use config::{
    BootMode, IntoImage, Mebibytes, OciRootfsSource, PullPolicy, RootfsSource, SandboxConfig,
    SandboxPolicy, SizeExt,
};
pub use create::PullProgressHandle;
pub use end::SandboxStopResult;
pub use error::{
    BootError, BootErrorStage, ExecFailed, FsError, MicrosandboxError, MicrosandboxResult,
};
pub use exec::{
    ExecEvent, ExecHandle, ExecLimits, ExecOptionsBuilder, ExecOutput, ExecSink, ExitStatus,
    Rlimit, RlimitResource, StdinMode,
};
pub use filter::SandboxFilter;
pub use fs::{
    FsCopyOptions, FsEntry, FsEntryKind, FsMetadata, FsReadStream, FsSetAttrs, FsWriteSink,
    SandboxFs,
};
pub use handle::{RunInfo, SandboxHandle};
pub use history::PastRun;
pub use jobs::{JobEvent, JobHandle, JobId, JobOutput, JobOutputMode, JobState};
pub use logs::{LogEntry, LogOptions, LogSource, LogStream, LogStreamOptions};
pub use metrics::{SandboxMetrics, all_sandbox_metrics};
pub use microsandbox_archive::Error as ArchiveError;
pub use microsandbox_image::{Progress, PullProgress, Reference};
pub use microsandbox_runtime::{
    Accel, Applied, BootTimes, ColdReason, ConfinementRecord, EndReason, Layer, Origin, VmmChoice,
    VmmKind,
};
pub use names::{MAX_HOSTNAME_BYTES, MAX_SANDBOX_NAME_BYTES, validate_sandbox_name};
pub use sandbox::Sandbox;
pub use snapshot::{
    Snapshot, SnapshotBuilder, SnapshotConfig, SnapshotLoadOptions, SnapshotSaveOptions,
};
pub use status::SandboxStatus;

/// What happens at a step of a sandbox's life; for tests that kill a process there, or try something.
#[cfg(feature = "stop-at-step")]
pub use microsandbox_runtime::step::{call_at, stop_at};
