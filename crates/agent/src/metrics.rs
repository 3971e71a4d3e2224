//! What the machine uses, read from the kernel when the host asks.

use std::fs;
use std::io;

use microsandbox_protocol::Metrics;
use nix::sys::statvfs::statvfs;

/// Ticks per second in which the kernel tells processor time (`USER_HZ`, `include/asm-generic/param.h`:
/// 100 wherever Linux runs user space).
const TICKS_PER_SECOND: u64 = 100;

/// Bytes of a sector in block statistics (`Documentation/block/stat.rst`), whatever the disk's own are.
const SECTOR_BYTES: u64 = 512;

/// Reads what the machine uses; `commands` is what the caller has under way.
pub(crate) fn read(commands: usize) -> Metrics {
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (disk_read_bytes, disk_written_bytes) = disks().unwrap_or_default();
    let (upper_total_bytes, upper_used_bytes) = root_file_system().unwrap_or_default();
    Metrics {
        uptime_ms: uptime_ms(&fs::read_to_string("/proc/uptime").unwrap_or_default()),
        cpu_ms: cpu_ms(&fs::read_to_string("/proc/stat").unwrap_or_default()),
        memory_total_bytes: memory_bytes(&memory, "MemTotal:"),
        memory_available_bytes: memory_bytes(&memory, "MemAvailable:"),
        disk_read_bytes,
        disk_written_bytes,
        upper_total_bytes,
        upper_used_bytes,
        processes: processes(&fs::read_to_string("/proc/loadavg").unwrap_or_default()),
        commands: u32::try_from(commands).unwrap_or(u32::MAX),
    }
}

/// The first number of `/proc/uptime`, seconds with hundredths.
fn uptime_ms(text: &str) -> u64 {
    let seconds = text.split(' ').next().and_then(|word| word.split_once('.'));
    let Some((whole, hundredths)) = seconds else { return 0 };
    let number = |digits: &str| digits.parse::<u64>().unwrap_or_default();
    number(whole) * 1000 + number(hundredths) * 10
}

/// All of the `cpu` line of `/proc/stat` but idle and waiting for disks (`proc_stat(5)`); what guests of
/// this machine used is in the first two already.
fn cpu_ms(text: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks = line.unwrap_or_default().split_whitespace().map(|word| word.parse::<u64>());
    let ticks: Vec<u64> = ticks.map(Result::unwrap_or_default).collect();
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|column| ticks.get(*column));
    busy.sum::<u64>() * 1000 / TICKS_PER_SECOND
}

/// A line of `/proc/meminfo`, told in KiB.
fn memory_bytes(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Threads that exist: behind the stroke in the fourth word of `/proc/loadavg`.
fn processes(text: &str) -> u32 {
    let word = text.split(' ').nth(3).and_then(|word| word.split_once('/'));
    word.and_then(|(_, all)| all.parse().ok()).unwrap_or_default()
}

/// Bytes read from and written to all virtio disks.
fn disks() -> io::Result<(u64, u64)> {
    let (mut read, mut written) = (0, 0);
    for disk in fs::read_dir("/sys/block")?.flatten() {
        if !disk.file_name().as_encoded_bytes().starts_with(b"vd") {
            continue;
        }
        let text = fs::read_to_string(disk.path().join("stat")).unwrap_or_default();
        let column = |index| {
            let word = text.split_whitespace().nth(index);
            word.and_then(|word| word.parse::<u64>().ok()).unwrap_or_default()
        };
        read += column(2) * SECTOR_BYTES;
        written += column(6) * SECTOR_BYTES;
    }
    Ok((read, written))
}

/// Size and use of the root: what an overlay tells is its writable layer's.
fn root_file_system() -> nix::Result<(u64, u64)> {
    let root = statvfs("/")?;
    let bytes = |blocks: u64| blocks.saturating_mul(root.fragment_size());
    Ok((bytes(root.blocks()), bytes(root.blocks().saturating_sub(root.blocks_free()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_where_the_kernel_puts_them() {
        assert_eq!(uptime_ms("12.34 20.00\n"), 12_340);
        assert_eq!(cpu_ms("cpu  10 1 5 1000 7 2 1 3 4 5\ncpu0 1 1 1 1\n"), 220);
        assert_eq!(memory_bytes("MemTotal:  1024 kB\nMemAvailable: 2 kB\n", "MemAvailable:"), 2048);
        assert_eq!(processes("0.00 0.01 0.05 2/57 1234\n"), 57);
        assert_eq!((uptime_ms(""), cpu_ms(""), memory_bytes("", "x"), processes("")), (0, 0, 0, 0));
    }
}
