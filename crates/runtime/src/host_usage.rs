//! What the processes of a sandbox take of the host, read from `/proc` when somebody asks.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use crate::{Result, SandboxDir};

/// What a running sandbox takes of the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostUsage {
    /// Memory that supervisor and VMM have in use, bytes. Pages that several sandboxes share count for each.
    pub memory_bytes: u64,
    /// Processor time of both.
    pub cpu: Duration,
    /// Bytes that the writable disk takes.
    pub disk_bytes: u64,
}

/// Ticks per second in `/proc/<pid>/stat` (`USER_HZ`: 100 wherever Linux runs user space).
const TICKS_PER_SECOND: u64 = 100;

/// Unit of `st_blocks` (`stat(3type)`).
const BLOCK_BYTES: u64 = 512;

impl SandboxDir {
    /// What the sandbox takes of the host; `None` when it does not run.
    ///
    /// # Errors
    /// [`crate::Error::File`] when lock or records cannot be read.
    pub fn host_usage(&self) -> Result<Option<HostUsage>> {
        let Some(run) = self.run_record()? else { return Ok(None) };
        let processes = [Some(run.pid), run.vmm_pid].into_iter().flatten();
        let used: Vec<(u64, u64)> = processes.filter_map(of_process).collect();
        // The ids were those of its processes if it is still held now.
        if !self.is_held()? {
            return Ok(None);
        }
        let ticks: u64 = used.iter().map(|(_, ticks)| ticks).sum();
        Ok(Some(HostUsage {
            memory_bytes: used.iter().map(|(bytes, _)| bytes).sum(),
            cpu: Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND),
            disk_bytes: bytes_on_disk(&self.upper_path()),
        }))
    }
}

/// Bytes that a file takes, its holes left out; 0 where there is none.
pub(crate) fn bytes_on_disk(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |meta| meta.blocks() * BLOCK_BYTES)
}

/// Resident bytes and processor ticks of a process (`proc_pid_status(5)`, `proc_pid_stat(5)`).
fn of_process(pid: u32) -> Option<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = resident.split_whitespace().next()?.parse().ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may hold anything; behind it the state is the third member.
    let (_, members) = stat.rsplit_once(") ")?;
    let member = |number: usize| members.split(' ').nth(number - 3)?.parse::<u64>().ok();
    Some((kib << 10, member(14)? + member(15)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_memory() {
        let (bytes, _) = of_process(std::process::id()).unwrap();
        assert!(bytes > 1 << 20, "{bytes}");
        assert_eq!(of_process(u32::MAX), None);
    }
}
