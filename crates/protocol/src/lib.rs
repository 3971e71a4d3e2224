//! The wire between a sandbox's host side and the agent in its guest.
//!
//! Bytes in, values out: this crate does no I/O, keeps no clock and knows no runtime. The guest end
//! lives in `crates/agent`, the host end and the relay in `crates/runtime`. The byte layout is
//! documented in `docs/formats/protocol.md`.
//!
//! ```text
//!  frame   len u32 LE | stream u32 LE | kind u8 | flags u8 | body      (frame)
//!  kinds   control: one postcard struct     bulk: the bytes themselves (kind, message)
//!  order   Hello -> Hello, Bootstrap -> Ready -> Exec ... Shutdown -> Stopped
//!  credit  a receiver says how many bulk bytes it takes; nobody sends more (credit)
//! ```
#![forbid(unsafe_code)]

mod boot;
mod code;
mod control;
mod credit;
mod error;
mod exec;
mod file;
mod frame;
mod hello;
mod job;
mod kind;
mod message;
mod metrics;
mod standstill;

pub use boot::{
    Become, BootFailed, BootStage, BootTimings, Bootstrap, Disk, ExecDefaults, Held, Hold, Ready,
    Rebirth, Release, Root, Timestamp, Upper,
};
pub use control::{
    Credit, Detach, Drain, Ended, Kill, Ping, Pong, SetClock, Shutdown, Stop, Stopped, Unsupported,
    Welcome,
};
pub use credit::{ReceiveWindow, SendWindow, WindowExceeded};
pub use error::Error;
pub use exec::{
    Exec, ExecExited, ExecFailed, ExecFailure, ExecLimits, ExecStarted, ExitStatus, LimitedExec,
    Program, Resize, Rlimit, RlimitResource, Signal, StdinClosed, StdinMode, TerminalSize, Usage,
};
pub use file::{
    BadRecord, FileAttributes, FileCall, FileEntry, FileFailed, FileFailure, FileKind,
    FileMetadata, FileOperation, MAX_NAME_LEN, MAX_PATH_LEN, MAX_RECORD_LEN, PathBytes,
    RecordDecoder, WriteMode, to_record,
};
pub use frame::{
    DEFAULT_WINDOW_BYTES, FLAG_END, Frame, FrameDecoder, HEADER_LEN, MAX_BODY_LEN, MAX_BULK_LEN,
    MAX_FRAME_LEN, StreamId,
};
pub use hello::{GENERATION, GENERATION_OLDEST, Hello, negotiate};
pub use job::{
    FINISHED_JOBS, JOB_COMMAND_BYTES, JOB_OUTPUT_BYTES, JOBS_OUTPUT_BYTES, JobAttached, JobCall,
    JobDetail, JobDetails, JobEnd, JobGap, JobId, JobInfo, JobOperation, JobUnknown, Jobs,
    RUNNING_JOBS,
};
pub use kind::Kind;
pub use message::{Message, opening_window};
pub use metrics::{Metrics, MetricsCall};
pub use standstill::{Concluded, Outcome, Pause, Resume, Save};

/// Name of the virtio-console port that carries this protocol.
///
/// The guest finds the port by this name in `/sys/class/virtio-ports/*/name`
/// (`drivers/char/virtio_console.c`), whatever its number is.
pub const PORT_NAME: &str = "agent";
