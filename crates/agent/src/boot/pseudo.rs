//! The kernel's own file systems, put together below the initial root and moved into the sandbox's
//! root later.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use microsandbox_protocol::BootStage;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::{Step, errno, failed};
use crate::cgroup;
use crate::sys::device;

/// Mounts that every sandbox has, parents first: type, place, flags, options.
const MOUNTS: &[(&str, &str, MsFlags, &str)] = &[
    ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=0755"),
    ("proc", "/proc", QUIET, ""),
    ("sysfs", "/sys", QUIET, ""),
    ("cgroup2", cgroup::MOUNT_POINT, QUIET, "nsdelegate"),
    ("devpts", "/dev/pts", MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC), PTS),
    ("tmpfs", "/dev/shm", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=1777"),
    ("mqueue", "/dev/mqueue", QUIET, ""),
    ("tmpfs", "/run", MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV), "mode=0755"),
];

/// No set-user-id files, no programs, no devices.
const QUIET: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NODEV);

/// Terminals belong to group 5, `tty` by convention of every distribution, and anyone may open one.
const PTS: &str = "mode=0620,gid=5,ptmxmode=0666";

/// Mounts whose whole trees move into the sandbox's root.
pub(super) const MOVED: &[&str] = &["dev", "proc", "sys", "run"];

/// Names in `/dev` that programs expect and the kernel does not make.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Settings of the kernel that differ from its defaults.
const SETTINGS: &[(&str, &str)] = &[
    // As Docker has them: ordinary users bind any port and send echo requests.
    ("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
    ("/proc/sys/net/ipv4/ping_group_range", "0 2147483647"),
];

/// Does what needs nothing of `Bootstrap`.
///
/// # Errors
/// [`crate::Error::Boot`] at its first stage.
pub(crate) fn prepare() -> Step<()> {
    let stage = BootStage::PseudoFilesystems;
    for (kind, target, flags, options) in MOUNTS {
        // Those of the initial root exist; those inside the mounts above may.
        let _ = fs::create_dir(target);
        mount(Some(*kind), *target, Some(*kind), *flags, Some(*options))
            .map_err(failed(stage, *target))?;
    }
    for (target, link) in LINKS {
        match symlink(target, link) {
            Err(error) if errno(&error) != Errno::EEXIST => {
                return Err(failed(stage, *link)(errno(&error)));
            }
            _ => {}
        }
    }
    for (path, value) in SETTINGS {
        // A kernel without the setting has nothing to set.
        let _ = fs::write(path, value);
    }
    loopback().map_err(failed(BootStage::Identity, "lo"))
}

fn loopback() -> Result<(), Errno> {
    let any = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    device::set_interface_up(any, b"lo")
}

/// Whether `path` is a directory without a link in its last part.
pub(super) fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|data| data.is_dir())
}
