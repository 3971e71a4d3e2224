//! Running commands: the bodies of an exec stream.
//!
//! ```text
//!  client                                  agent
//!    Exec {window} ───────────────────────▶
//!    ◀──────────────── ExecStarted {window} | ExecFailed (end)
//!    Stdin… , Stdin|END ──────────────────▶   within the agent's window
//!    ◀──────────────────── Stdout…, Stderr…   within the client's window
//!    Credit ◀────────────────────────▶ Credit
//!    Signal, Resize ──────────────────────▶
//!    ◀─────────────── ExecExited (end)         after all output
//! ```

use serde::{Deserialize, Serialize};

use crate::code::code;

/// Run a command on this stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub program: Program,
    /// Arguments after the program's own name.
    pub args: Vec<String>,
    /// Environment laid over the sandbox's, in order; a later name wins.
    pub env: Vec<(String, String)>,
    /// Working directory; none: the sandbox's.
    pub cwd: Option<String>,
    /// User as in [`crate::ExecDefaults::user`]; none: the sandbox's.
    pub user: Option<String>,
    /// Where standard input comes from.
    pub stdin: StdinMode,
    /// Run on a terminal of this size; output is then all [`crate::Kind::Stdout`].
    pub terminal: Option<TerminalSize>,
    /// Limits set before the program starts.
    pub rlimits: Vec<Rlimit>,
    /// Kill the command and all its descendants after this time, milliseconds.
    pub timeout_ms: Option<u64>,
    /// Output bytes the client takes before it grants more.
    pub window: u32,
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// A path, or a name looked up in the `PATH` of the command's environment.
    Path(String),
    /// The agent itself, which exits with 0: proves that the whole way to an exec works.
    SelfTest,
}

/// Where standard input comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum StdinMode {
    /// `/dev/null`.
    #[default]
    Null,
    /// [`crate::Kind::Stdin`] frames.
    Pipe,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// One limit of `setrlimit(2)`; `u64::MAX` is infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// What is limited.
    pub resource: RlimitResource,
    /// The limit that counts; a process may raise it up to `hard`.
    pub soft: u64,
    /// The ceiling.
    pub hard: u64,
}

code! {
    /// Resources of `setrlimit(2)`, by their numbers in Linux (`asm-generic/resource.h`).
    RlimitResource, fallback Unknown {
        /// CPU time, seconds.
        Cpu = 0,
        /// Size of a file, bytes.
        Fsize = 1,
        /// Data segment, bytes.
        Data = 2,
        /// Stack, bytes.
        Stack = 3,
        /// Core file, bytes.
        Core = 4,
        /// Resident set, bytes; without effect since Linux 2.4.30.
        Rss = 5,
        /// Processes of the user.
        Nproc = 6,
        /// One more than the highest file descriptor.
        Nofile = 7,
        /// Locked memory, bytes.
        Memlock = 8,
        /// Address space, bytes.
        As = 9,
        /// File locks; without effect since Linux 2.4.25.
        Locks = 10,
        /// Queued signals of the user.
        Sigpending = 11,
        /// POSIX message queues of the user, bytes.
        Msgqueue = 12,
        /// Ceiling of the nice value, as 20 minus it.
        Nice = 13,
        /// Ceiling of the real-time priority.
        Rtprio = 14,
        /// CPU time without a blocking call under real-time scheduling, microseconds.
        Rttime = 15,
        /// A resource this end has no name for; setting it is refused.
        Unknown = 255,
    }
}

/// The command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStarted {
    /// Process id in the guest.
    pub pid: u32,
    /// Input bytes the agent takes before it grants more.
    pub window: u32,
}

/// The command could not be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecFailed {
    /// What was wrong.
    pub failure: ExecFailure,
    /// Error number of the guest kernel, 0 when there is none.
    pub errno: i32,
    /// The object it failed on: the program, the directory, the user.
    pub object: String,
}

code! {
    /// Why a command could not be started.
    ExecFailure, fallback Other {
        /// A reason this end has no name for.
        Other = 0,
        /// No such program.
        NotFound = 1,
        /// The user may not run it.
        PermissionDenied = 2,
        /// The file is no program this machine can run.
        NotExecutable = 3,
        /// The working directory cannot be entered.
        BadCwd = 4,
        /// Arguments or environment are malformed or too long.
        BadArgs = 5,
        /// A limit was refused, or no more processes are allowed.
        ResourceLimit = 6,
        /// No such user or group, or it could not be taken on.
        BadUser = 7,
        /// The guest has no memory for it.
        OutOfMemory = 8,
        /// No terminal could be opened.
        Terminal = 9,
        /// The guest is stopping and starts nothing more.
        ShuttingDown = 10,
    }
}

/// The command has ended; its output was all sent before this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecExited {
    /// How the leader ended.
    pub status: ExitStatus,
    /// It was killed because its time was up.
    pub timed_out: bool,
    /// The guest kernel killed a process of this command for want of memory.
    pub out_of_memory: bool,
    /// What it used, descendants included.
    pub usage: Usage,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It called `exit` with this code.
    Code(u8),
    /// This signal ended it.
    Signal(u8),
}

impl ExitStatus {
    /// The code a shell shows for it: the command's own, or 128 and the signal's number.
    pub const fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code as i32,
            Self::Signal(signal) => 128 + signal as i32,
        }
    }
}

/// Resources a command used, all its descendants together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time in user mode, microseconds.
    pub user_us: u64,
    /// CPU time in the guest kernel, microseconds.
    pub system_us: u64,
    /// Most memory at any moment, bytes.
    pub peak_memory_bytes: u64,
}

/// Send a signal to the command's process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signal {
    /// Number, as Linux on this architecture counts them.
    pub signal: i32,
}

/// The terminal has another size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// The new size.
    pub size: TerminalSize,
}

/// The command takes no more input: it closed it or ended. Input on its way is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StdinClosed {
    /// Why the last write failed, 0 when none did.
    pub errno: i32,
}
