//! Control of the link and of streams: small bodies that never wait behind bulk data.

use serde::{Deserialize, Serialize};

use crate::{Ready, StreamId, Timestamp};

/// End every session (TERM, then KILL after the grace), sync, remount read-only, power off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shutdown {
    /// Time between TERM and KILL, milliseconds.
    pub grace_ms: u32,
}

/// Everything written is on the disks. Nothing follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {}

/// Begin nothing more, and end the sandbox when all that is under way has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {}

/// Set the wall clock: the host has slept, its clock was set, or the guest stood still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetClock {
    /// The time it is.
    pub wall_clock: Timestamp,
}

/// Answer with the same token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ping {
    /// Any number.
    pub token: u64,
}

/// The answer to [`Ping`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pong {
    /// The number asked with.
    pub token: u64,
}

/// The receiver does not know that kind and skipped the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// Kind byte of the skipped frame.
    pub kind: u8,
}

/// The sender of this takes that many more bulk bytes on this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credit {
    /// Bytes, added to what is left.
    pub bytes: u32,
}

/// Kill the command with all its descendants and forget the stream; nothing more is answered on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kill {}

/// The command on a terminal becomes a job, whose number comes back as [`crate::JobInfo`], and the
/// stream is over. One that cannot is told as [`Unsupported`], and the stream goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detach {}

/// What the relay tells a client that connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// First stream id that is this client's.
    pub first_stream: StreamId,
    /// How many ids follow it, itself counted.
    pub stream_count: u32,
    /// What the guest said when it became ready.
    pub ready: Ready,
}

/// The sandbox has ended and its lock is free. Nothing follows.
///
/// Clients hear it here because the directory of an ephemeral sandbox is gone by now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// What `exit.json` says: JSON of the same form.
    pub exit_record: String,
}

/// End the sandbox: in order within the grace, by force after it.
///
/// The link closes once `exit.json` says how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// Time for an orderly end, milliseconds; 0 kills at once.
    pub timeout_ms: u32,
}
