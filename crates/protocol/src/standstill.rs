//! Standing still: what a client asks the supervisor for, each on a stream of its own that the answer
//! ends. None of it reaches the agent.

use serde::{Deserialize, Serialize};

/// Have the guest's processors stand still until [`Resume`]. One that stands still stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {}

/// Have them go on. Those that go on do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {}

/// Save the machine into a folder of that name, new, in the directory of the sandbox: its memory, the
/// rest of its state and a copy of its disk, all of one moment. It goes on, unless it stood still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Save {
    /// Name of the folder, of lower-case letters, digits and dashes.
    pub folder: String,
}

/// What became of it; the stream is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Concluded {
    /// How it ended.
    pub outcome: Outcome,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// As was asked.
    Done,
    /// It was tried, and this went wrong. The sandbox is as it was.
    Failed {
        /// What happened.
        detail: String,
    },
    /// Its VMM cannot do it.
    Unsupported {
        /// Which VMM it is.
        vmm: String,
    },
    /// It was saved.
    Saved {
        /// How long the guest stood still for it, microseconds.
        still_us: u64,
    },
    /// The host's disk has no room for it. The sandbox is as it was.
    DiskFull {
        /// What could not be written.
        detail: String,
    },
}
