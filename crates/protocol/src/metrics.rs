//! Metrics: what a guest uses, asked for when somebody wants to know.

use serde::{Deserialize, Serialize};

/// Tell what the guest uses, on this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetricsCall {}

/// What the guest uses. Sums count from its boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// Time since its boot, milliseconds.
    pub uptime_ms: u64,
    /// Time its processors were at work, milliseconds, all of them together.
    pub cpu_ms: u64,
    /// Memory it has.
    pub memory_total_bytes: u64,
    /// Memory a new program could have (`MemAvailable` of `proc_meminfo(5)`).
    pub memory_available_bytes: u64,
    /// Read from its disks.
    pub disk_read_bytes: u64,
    /// Written to its disks.
    pub disk_written_bytes: u64,
    /// Size of its writable file system.
    pub upper_total_bytes: u64,
    /// Of that, in use.
    pub upper_used_bytes: u64,
    /// Processes and kernel threads it has.
    pub processes: u32,
    /// Commands and detached jobs under way.
    pub commands: u32,
}
