//! The files a VMM may open: everything its description names, and what its program is made of.
//!
//! Whatever is added to [`VmSpec`] and is a path is added here, or the VMM cannot open it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{Accel, DiskFormat, DiskSpec, SelectedVmm, ShareServer, VmSpec, VmmKind};
use crate::confine::files::{Access, FileRule, rules};

/// Everything the VMM may open, beside the program that becomes it.
///
/// # Errors
/// The descriptor of a disk cannot be read.
pub(crate) fn list(vmm: &SelectedVmm, spec: &VmSpec) -> io::Result<Vec<FileRule>> {
    let mut list: Vec<FileRule> = rules(Access::Read, [&spec.kernel, &spec.initramfs])
        .chain(rules(Access::Read, ["/dev/urandom"]))
        .chain(rules(Access::Write, ["/dev/null"]))
        .collect();
    for disk in &spec.devices.disks {
        let access = if disk.read_only { Access::Read } else { Access::Write };
        list.extend(rules(access, disk_files(disk)?));
    }
    if vmm.kind.share_server() == ShareServer::Vmm {
        for share in &spec.devices.shares {
            let access = if share.read_only { Access::Read } else { Access::Share };
            list.extend(rules(access, [&share.path]));
        }
    }
    if vmm.accel == Accel::Kvm {
        list.extend(rules(Access::Device, ["/dev/kvm"]));
    }
    if let (VmmKind::Qemu, Some(program)) = (vmm.kind, &vmm.program) {
        list.extend(program_files(program));
    }
    Ok(list)
}

fn disk_files(disk: &DiskSpec) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![disk.path.clone()];
    if disk.format == DiskFormat::Vmdk {
        let text = match fs::read_to_string(&disk.path) {
            // The VMM says which disk it misses.
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let folder = disk.path.parent().unwrap_or_else(|| Path::new("/"));
        files.extend(extents(&text).map(|name| folder.join(name)));
    }
    Ok(files)
}

/// Names of the files behind a disk, relative to its descriptor: `RW 2048 FLAT "lower.raw" 0`.
fn extents(descriptor: &str) -> impl Iterator<Item = &str> {
    descriptor
        .lines()
        .filter(|line| line.starts_with("RW "))
        .filter_map(|line| line.split('"').nth(1))
}

/// Dynamic loaders, by the names that programs have in them. They are executed like a program.
const LOADERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

/// Where libraries are; those of a program outside of `/usr` lie beside it as well.
const LIBRARIES: &[&str] = &["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib"];

/// Where Debian's QEMU looks for firmware, wherever it lies itself.
const FIRMWARE: &[&str] = &["/usr/share/qemu", "/usr/share/seabios"];

/// Below a prefix such as `/usr`: libraries, modules, and the firmware that a machine begins with.
const BELOW_PREFIX: &[&str] = &["lib", "lib64", "share/qemu", "share/seabios"];

/// What a program that is not ours is made of: it, its loader, libraries and firmware.
fn program_files(program: &Path) -> impl Iterator<Item = FileRule> {
    let found = program.canonicalize().unwrap_or_else(|_| program.to_owned());
    let prefix = found.parent().and_then(Path::parent).map(Path::to_owned);
    // A program that lies in a directory of the root, or in a home, has no prefix of its own.
    let prefix = prefix.filter(|_| found.parent().is_some_and(|folder| folder.ends_with("bin")));
    let below = prefix
        .into_iter()
        .flat_map(|prefix| BELOW_PREFIX.iter().map(move |name| prefix.join(name)));
    rules(Access::Execute, [found.clone()])
        .chain(rules(Access::Execute, LOADERS.iter().copied()))
        .chain(rules(Access::Read, LIBRARIES.iter().chain(FIRMWARE).copied()))
        .chain(rules(Access::Read, below))
        .chain(rules(Access::Read, ["/etc/ld.so.cache"]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::{Devices, ShareSpec};

    fn spec(dir: &Path) -> VmSpec {
        let disk = |id: &str, name: &str, format, read_only| DiskSpec {
            id: id.into(),
            path: dir.join(name),
            format,
            read_only,
        };
        let share =
            |name: &str, read_only| ShareSpec { tag: name.into(), path: dir.join(name), read_only };
        VmSpec {
            vcpus: 1,
            memory_mib: 128,
            kernel: "/k".into(),
            initramfs: "/i".into(),
            devices: Devices {
                disks: vec![
                    disk("lower", "disk.vmdk", DiskFormat::Vmdk, true),
                    disk("upper", "upper", DiskFormat::Raw, false),
                ],
                shares: vec![share("inputs", true), share("outputs", false)],
                net: None,
            },
            incoming: false,
            arguments: String::new(),
        }
    }

    #[test]
    fn list_has_what_the_description_names_and_no_more_is_writable() {
        let dir = tempfile::tempdir().unwrap();
        let descriptor =
            "# Disk DescriptorFile\nRW 8 FLAT \"meta\" 0\nRW 8 FLAT \"../layers/a\" 0\n";
        fs::write(dir.path().join("disk.vmdk"), descriptor).unwrap();
        let vmm = |kind, accel| SelectedVmm { kind, accel, program: None, tsc_khz: None };
        let list = |vmm| list(&vmm, &spec(dir.path())).unwrap();
        let krun = list(vmm(VmmKind::Libkrun, Accel::Kvm));
        let with = |access| {
            let with = krun.iter().filter(move |rule| rule.access == access);
            with.map(|rule| rule.path.clone()).collect::<Vec<_>>()
        };
        let here = |name: &str| dir.path().join(name);
        assert_eq!(
            with(Access::Read),
            [
                "/k".into(),
                "/i".into(),
                "/dev/urandom".into(),
                here("disk.vmdk"),
                here("meta"),
                here("../layers/a"),
                here("inputs"),
            ]
        );
        assert_eq!(with(Access::Write), ["/dev/null".into(), here("upper")]);
        assert_eq!(with(Access::Share), [here("outputs")]);
        assert_eq!(with(Access::Device), [PathBuf::from("/dev/kvm")]);
        assert_eq!(krun.len(), 11);
        let emulated = list(vmm(VmmKind::Qemu, Accel::Tcg));
        assert!(!emulated.iter().any(|rule| rule.access == Access::Device));
        let shared = ["inputs", "outputs"].map(here);
        assert!(!emulated.iter().any(|rule| shared.contains(&rule.path)), "a backend serves them");
    }

    #[test]
    fn a_program_in_a_home_opens_no_more_of_it() {
        let of = |program: &str| {
            program_files(Path::new(program)).map(|rule| rule.path).collect::<Vec<_>>()
        };
        assert!(of("/nowhere/me/qemu").iter().all(|path| !path.ends_with("nowhere/lib")));
        assert!(of("/nowhere/me/bin/qemu").contains(&PathBuf::from("/nowhere/me/share/qemu")));
        assert!(of("/nowhere/me/bin/qemu").contains(&PathBuf::from("/usr/share/qemu")));
    }
}
