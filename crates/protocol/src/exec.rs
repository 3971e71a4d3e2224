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

use crate::{DEFAULT_WINDOW_BYTES, code::code};

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

impl Exec {
    /// The program alone: no arguments, no input, and all else as the sandbox has it.
    pub const fn new(program: Program) -> Self {
        Self {
            program,
            args: Vec::new(),
            env: Vec::new(),
            cwd: None,
            user: None,
            stdin: StdinMode::Null,
            terminal: None,
            rlimits: Vec::new(),
            timeout_ms: None,
            window: DEFAULT_WINDOW_BYTES,
        }
    }
}

/// Run a command on this stream, within limits that hold for it and all its descendants together.
///
/// A kind of its own, so that an agent that knows no limits refuses the command by name instead of
/// running it without them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitedExec {
    /// The command.
    pub exec: Exec,
    /// What it may use.
    pub limits: ExecLimits,
}

/// What a command and its descendants may use together; none: what the machine has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecLimits {
    /// Memory, page cache included, bytes. Beyond it the guest kernel kills a process of the command.
    pub memory_bytes: Option<u64>,
    /// Processor time in thousandths of one processor, at least 10.
    pub cpu_thousandths: Option<u32>,
    /// Processes and threads. Beyond it `fork` fails with `EAGAIN`.
    pub processes: Option<u32>,
}

impl ExecLimits {
    /// Whether anything is limited.
    pub const fn is_empty(&self) -> bool {
        self.memory_bytes.is_none() && self.cpu_thousandths.is_none() && self.processes.is_none()
    }
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

impl RlimitResource {
    /// Its name in lower case, as `ulimit` tables and Docker write it: `nofile`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Fsize => "fsize",
            Self::Data => "data",
            Self::Stack => "stack",
            Self::Core => "core",
            Self::Rss => "rss",
            Self::Nproc => "nproc",
            Self::Nofile => "nofile",
            Self::Memlock => "memlock",
            Self::As => "as",
            Self::Locks => "locks",
            Self::Sigpending => "sigpending",
            Self::Msgqueue => "msgqueue",
            Self::Nice => "nice",
            Self::Rtprio => "rtprio",
            Self::Rttime => "rttime",
            Self::Unknown => "unknown",
        }
    }
}

impl TryFrom<&str> for RlimitResource {
    type Error = String;

    /// The resource of that name, in any case.
    fn try_from(name: &str) -> Result<Self, String> {
        let lower = name.to_ascii_lowercase();
        let known = Self::ALL.iter().filter(|resource| **resource != Self::Unknown);
        let found = known.copied().find(|resource| resource.as_str() == lower);
        found.ok_or_else(|| format!("unknown rlimit resource: {name}"))
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
        /// The sandbox stands still.
        Paused = 11,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resource_is_found_again_by_its_name() {
        for resource in RlimitResource::ALL {
            let found = RlimitResource::try_from(resource.as_str()).ok();
            let expected = Some(*resource).filter(|known| *known != RlimitResource::Unknown);
            assert_eq!(found, expected);
        }
        assert_eq!(RlimitResource::try_from("NoFile"), Ok(RlimitResource::Nofile));
        let error = RlimitResource::try_from("nofiles").unwrap_err();
        assert_eq!(error, "unknown rlimit resource: nofiles");
    }
}
