//! Virtio block devices by their place, and binding them anew after a template was restored.

use std::fs;
use std::path::Path;

use microsandbox_protocol::Disk;

/// The driver's place in sysfs (`drivers/block/virtio_blk.c`).
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_blk";

/// Name of a disk, such as `vda`.
pub(super) fn name(disk: Disk) -> String {
    let mut number = usize::from(disk.0);
    let mut letters = Vec::new();
    // As `sd_format_disk_name` of the kernel counts: a, …, z, aa, ab, …
    loop {
        letters.push(char::from(b"abcdefghijklmnopqrstuvwxyz"[number % 26]));
        match number / 26 {
            0 => break,
            rest => number = rest - 1,
        }
    }
    ["v", "d"]
        .into_iter()
        .map(str::to_owned)
        .chain(letters.iter().rev().map(char::to_string))
        .collect()
}

/// Binds the block driver to its devices anew if one of `disks` is missing or empty.
///
/// A template is saved with placeholders for disks; the driver reads a disk's size once, when it
/// binds. Errors are left to the mount that needs the disk.
pub(super) fn refresh(disks: &[Disk]) {
    let usable = |disk: &Disk| {
        fs::read_to_string(Path::new("/sys/block").join(name(*disk)).join("size"))
            .is_ok_and(|sectors| sectors.trim() != "0")
    };
    if !disks.iter().all(usable) {
        rebind();
    }
}

fn rebind() {
    let Ok(entries) = fs::read_dir("/sys/bus/virtio/devices") else { return };
    let block = |path: &Path| {
        // 2 is a block device (Virtio 1.2, section 5).
        fs::read_to_string(path.join("device")).is_ok_and(|id| id.trim() == "0x0002")
    };
    let mut devices: Vec<String> = entries
        .flatten()
        .filter(|entry| block(&entry.path()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    // `virtio10` comes after `virtio9`; names of disks follow the order of binding.
    devices.sort_by_key(|name| (name.len(), name.clone()));
    for verb in ["unbind", "bind"] {
        for device in &devices {
            // A device that was not bound cannot be unbound.
            let _ = fs::write(Path::new(DRIVER).join(verb), device);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_are_named_as_the_kernel_names_them() {
        for (number, expect) in
            [(0, "vda"), (1, "vdb"), (25, "vdz"), (26, "vdaa"), (27, "vdab"), (255, "vdiv")]
        {
            assert_eq!(name(Disk(number)), expect);
        }
    }
}
