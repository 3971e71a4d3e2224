//! The initramfs: a newc archive with the agent as `/init` and the mount points it needs.
//!
//! Not compressed: the file is half a megabyte, and the kernel copies faster than it inflates.
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst of Linux.

use anyhow::{Context as _, Result};

/// Folders that PID 1 mounts on; `newroot` takes the sandbox's root file system.
const FOLDERS: [&str; 5] = ["dev", "newroot", "proc", "run", "sys"];
/// Device number of `/dev/console`, which the kernel opens for PID 1's standard streams.
const CONSOLE: (u32, u32) = (5, 1);

/// Type and permission bits, as in `st_mode`.
const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

/// Packs the agent's program. The same program gives the same bytes.
pub(crate) fn pack(agent: &[u8]) -> Result<Vec<u8>> {
    let mut archive = Archive::new()?;
    archive.add("init", PROGRAM, (0, 0), agent)?;
    archive.end()
}

/// Packs a shell script in the agent's place, and busybox under the names that it uses.
pub(crate) fn pack_script(busybox: &[u8], applets: &[&str], script: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::new()?;
    archive.add("bin", FOLDER, (0, 0), &[])?;
    archive.add("bin/busybox", PROGRAM, (0, 0), busybox)?;
    for applet in applets {
        archive.add(&format!("bin/{applet}"), LINK, (0, 0), b"busybox")?;
    }
    archive.add("init", PROGRAM, (0, 0), script.as_bytes())?;
    archive.end()
}

#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// One with the folders and the device that every PID 1 needs.
    fn new() -> Result<Self> {
        let mut archive = Self::default();
        for folder in FOLDERS {
            archive.add(folder, FOLDER, (0, 0), &[])?;
        }
        archive.add("dev/console", CHARACTER_DEVICE, CONSOLE, &[])?;
        Ok(archive)
    }

    fn add(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        self.entries += 1;
        let links = 1;
        self.entry(name, [self.entries, mode, 0, 0, links, 0], device, content)
    }

    fn end(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", [0, 0, 0, 0, 1, 0], (0, 0), &[])?;
        Ok(self.bytes)
    }

    /// `head` is inode, mode, uid, gid, links, mtime: the first six of thirteen header fields.
    fn entry(
        &mut self,
        name: &str,
        head: [u32; 6],
        device: (u32, u32),
        content: &[u8],
    ) -> Result<()> {
        let size = u32::try_from(content.len()).context("the agent is too large for a cpio")?;
        let name_size = u32::try_from(name.len() + 1).context("a name is too long for a cpio")?;
        let tail = [size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        for field in head.into_iter().chain(tail) {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes().chain([0]));
        self.pad();
        self.bytes.extend(content);
        self.pad();
        Ok(())
    }

    /// Names and contents both start at multiples of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_entry_has_the_documented_bytes() {
        let bytes = pack(b"program").unwrap();
        let expected = "070701\
             00000001000041ED0000000000000000000000010000000000000000\
             00000000000000000000000000000000\
             0000000400000000dev\0";
        assert_eq!(std::str::from_utf8(&bytes[..expected.len()]).unwrap(), expected);
    }

    #[test]
    fn archive_is_aligned_and_ends_with_the_trailer() {
        for len in 0..5 {
            let bytes = pack(&vec![b'x'; len]).unwrap();
            assert_eq!(bytes.len() % 4, 0, "content of {len} bytes");
            assert!(bytes.windows(11).any(|window| window == b"TRAILER!!!\0"));
        }
    }
}
