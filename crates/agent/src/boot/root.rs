//! The sandbox's root: a read-only image under a writable layer, then made the root of everything.
//!
//! ```text
//!  /lower   the image, EROFS            hidden once the new root covers
//!  /upper   the writable layer           the initial one
//!  /newroot the two together ──▶ /
//! ```

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use microsandbox_protocol::{BootStage, Root, Upper};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount as mount_at};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, chroot};

use super::pseudo::{MOVED, is_directory};
use super::{Step, disk, errno, failed};

pub(super) const LOWER: &str = "/lower";
const UPPER: &str = "/upper";
const NEW_ROOT: &str = "/newroot";

/// The two layers as one (`Documentation/filesystems/overlayfs.rst`).
///
/// `redirect_dir`: directories of the image can be renamed. `metacopy`: a changed owner or mode does
/// not copy a file's data. `index`: off, it would refuse an upper that another lower has seen, as
/// after a restore. The image of a sandbox never changes, which the first two rely on.
const OVERLAY: &str = "lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work,\
                       redirect_dir=on,metacopy=on,index=off";

/// How the writable disk is mounted (`Documentation/admin-guide/ext4.rst`).
///
/// `discard`: what is deleted is given back to the host at the next commit of the journal, so that a
/// disk takes the room, and a copy of it the time, of what is in it. The other two spare each machine a
/// thread that writes zeros where the disk was made of them, and reads what may never be needed.
const UPPER_DISK: &str = "discard,noinit_itable,no_prefetch_block_bitmaps";

/// Mounts the root below the initial one; gives the directory that holds the writable layer.
pub(super) fn mount(root: &Root) -> Step<OwnedFd> {
    let mut disks = vec![root.lower];
    if let Upper::Disk(upper) = root.upper {
        disks.push(upper);
    }
    disk::refresh(&disks);
    for path in [LOWER, UPPER, NEW_ROOT] {
        make_directory(Path::new(path), BootStage::MountLower)?;
    }
    let device = format!("/dev/{}", disk::name(root.lower));
    attach(&device, LOWER, "erofs", MsFlags::MS_RDONLY, "")
        .map_err(failed(BootStage::MountLower, &device))?;
    let stage = BootStage::MountUpper;
    let (device, kind, options) = match root.upper {
        Upper::Disk(disk) => (format!("/dev/{}", disk::name(disk)), "ext4", UPPER_DISK.to_owned()),
        Upper::Memory { size_bytes } => {
            ("tmpfs".to_owned(), "tmpfs", format!("size={size_bytes},mode=0755"))
        }
    };
    attach(&device, UPPER, kind, MsFlags::MS_NOATIME, &options).map_err(failed(stage, &device))?;
    for name in ["upper", "work"] {
        make_directory(&Path::new(UPPER).join(name), stage)?;
    }
    attach("overlay", NEW_ROOT, "overlay", MsFlags::empty(), OVERLAY)
        .map_err(failed(BootStage::MountOverlay, NEW_ROOT))?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(UPPER, flags, Mode::empty()).map_err(failed(stage, UPPER))
}

/// Makes the mounted root that of every process, with the kernel's file systems in it.
pub(super) fn switch() -> Step<()> {
    let stage = BootStage::SwitchRoot;
    for name in MOVED {
        let (from, to) = (Path::new("/").join(name), Path::new(NEW_ROOT).join(name));
        // A link here could lead the mount elsewhere in the image, and no image needs one.
        if !is_directory(&to) {
            let _ = fs::remove_file(&to);
            make_directory(&to, stage)?;
        }
        mount_at(Some(&from), &to, None::<&str>, MsFlags::MS_MOVE, None::<&str>)
            .map_err(failed(stage, to.display().to_string()))?;
    }
    chdir(NEW_ROOT).map_err(failed(stage, NEW_ROOT))?;
    mount_at(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(failed(stage, "/"))?;
    chroot(".").map_err(failed(stage, "/"))?;
    chdir("/").map_err(failed(stage, "/"))?;
    // `/tmp` is the image's own; one without it still has programs that expect it.
    if !Path::new("/tmp").exists() {
        let sticky = fs::Permissions::from_mode(0o1777);
        let made = fs::create_dir("/tmp").and_then(|()| fs::set_permissions("/tmp", sticky));
        made.map_err(|error| failed(stage, "/tmp")(errno(&error)))?;
    }
    Ok(())
}

fn attach(
    device: &str,
    target: &str,
    kind: &str,
    flags: MsFlags,
    options: &str,
) -> Result<(), Errno> {
    mount_at(Some(device), target, Some(kind), flags, Some(options))
}

fn make_directory(path: &Path, stage: BootStage) -> Step<()> {
    match fs::create_dir(path) {
        Err(error) if errno(&error) != Errno::EEXIST => {
            Err(failed(stage, path.display().to_string())(errno(&error)))
        }
        _ => Ok(()),
    }
}
