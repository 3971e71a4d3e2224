//! Detached jobs: commands that no client's end ends.
//!
//! ```text
//!  client                         agent
//!    JobCall {window} ───────────▶
//!    ◀─────────────────────────── JobInfo | ExecFailed | JobUnknown | Jobs    (end)
//!
//!    JobCall {Output} ───────────▶
//!    ◀── Stdout…, Stderr…, JobGap   within the client's window
//!    ◀─────────────────────────── JobInfo                                     (end)
//!    Kill ───────────────────────▶ forgets the stream; the job goes on
//!
//!    JobCall {Attach} ───────────▶
//!    ◀─────────────────────────── JobAttached {window}
//!    Stdin…, Resize, Signal ─────▶   within the agent's window, to the job
//!    ◀── Stdout…, JobGap            …as above
//! ```

use serde::{Deserialize, Serialize};

use crate::{Exec, ExecExited, ExecLimits, TerminalSize, Timestamp, Usage};

/// Output of one job that is kept; older output is dropped and told as a gap.
pub const JOB_OUTPUT_BYTES: usize = 1 << 20;

/// Output of all jobs together that is kept.
pub const JOBS_OUTPUT_BYTES: usize = 8 << 20;

/// Finished jobs that are kept; the one that ended first is forgotten first.
pub const FINISHED_JOBS: usize = 256;

/// Jobs that may run at once.
pub const RUNNING_JOBS: usize = 256;

/// Bytes of a command line that [`JobInfo`] keeps.
pub const JOB_COMMAND_BYTES: usize = 1024;

/// Do this with jobs, on this stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCall {
    /// Output bytes the client takes before it grants more. First, so that a relay finds it whatever
    /// the operation is.
    pub window: u32,
    /// What to do.
    pub operation: JobOperation,
}

/// Number of a job: from 1, never used again while the guest runs.
pub type JobId = u64;

/// What to do with jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum JobOperation {
    /// Start one.
    Start {
        /// The command. Its standard input is `/dev/null` and it has no terminal, whatever this says.
        exec: Exec,
        /// What it and its descendants may use.
        limits: ExecLimits,
    },
    /// Tell them all.
    List,
    /// Send what is kept of its output, then its state.
    Output {
        /// Which job.
        id: JobId,
        /// Whether to go on until the job has ended.
        follow: bool,
        /// Whether to begin with what is kept; else with what comes.
        from_start: bool,
    },
    /// Tell its state once it has ended.
    Wait {
        /// Which job.
        id: JobId,
    },
    /// Send a signal to its process group.
    Signal {
        /// Which job.
        id: JobId,
        /// Number, as Linux on this architecture counts them.
        signal: i32,
    },
    /// Kill it with all its descendants.
    Kill {
        /// Which job.
        id: JobId,
    },
    /// Forget it with its output. One that runs is refused: its state is told, and it stays.
    Forget {
        /// Which job.
        id: JobId,
    },
    /// Connect to it: first [`JobAttached`], then its output from where it was last looked at, while
    /// what the client types goes to its terminal. Output and state come as for `Output`.
    Attach {
        /// Which job.
        id: JobId,
        /// The client's terminal, which the job's takes its size from.
        size: Option<TerminalSize>,
    },
    /// Tell [`JobDetails`].
    Describe {
        /// Of which job; none: of all.
        id: Option<JobId>,
    },
    /// Start one on the terminal that `exec` asks for.
    StartOnTerminal {
        /// The command; its standard input is the terminal.
        exec: Exec,
        /// What it and its descendants may use.
        limits: ExecLimits,
    },
}

/// The client is connected to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobAttached {
    /// Process id in the guest of its first process.
    pub pid: u32,
    /// Input bytes the agent takes before it grants more; 0 without a terminal.
    pub window: u32,
    /// Whether the job has a terminal.
    pub terminal: bool,
}

/// What is known of jobs, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDetails {
    /// The jobs.
    pub jobs: Vec<JobDetail>,
}

/// More than [`JobInfo`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDetail {
    /// As other answers have it.
    pub info: JobInfo,
    /// What it and its descendants may use.
    pub limits: ExecLimits,
    /// What they have used so far.
    pub usage: Usage,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// What is known of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobInfo {
    /// Its number.
    pub id: JobId,
    /// Program and arguments, cut at [`JOB_COMMAND_BYTES`].
    pub command: Vec<String>,
    /// Process id in the guest of its first process.
    pub pid: u32,
    /// When it was started.
    pub started: Timestamp,
    /// How it ended; none: it runs.
    pub ended: Option<JobEnd>,
    /// Bytes of output so far.
    pub output_bytes: u64,
    /// Bytes of output that are not kept any more.
    pub dropped_bytes: u64,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobEnd {
    /// When.
    pub at: Timestamp,
    /// How.
    pub exited: ExecExited,
}

/// All jobs, in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Jobs {
    /// The jobs.
    pub jobs: Vec<JobInfo>,
}

/// Output is missing here: it was dropped before this client read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobGap {
    /// How many bytes.
    pub bytes: u64,
}

/// There is no such job, or none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobUnknown {
    /// The number asked for.
    pub id: JobId,
}
