//! What a file system says of its files, and telling it otherwise.

use std::fs::{self, File, Metadata, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, lchown};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use microsandbox_protocol::{FileAttributes, FileKind, FileMetadata, Timestamp, to_record};
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::{Done, failed, output};

/// Tells what is at `path`.
pub(super) fn stat(path: &Path, follow: bool) -> Done {
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let metadata = metadata.map_err(failed("look at", path))?;
    output()?.write_all(&to_record(&describe(&metadata))).map_err(failed("send", path))
}

/// As the wire has it.
pub(super) fn describe(metadata: &Metadata) -> FileMetadata {
    let kind = metadata.file_type();
    let kind = match () {
        () if kind.is_file() => FileKind::File,
        () if kind.is_dir() => FileKind::Directory,
        () if kind.is_symlink() => FileKind::Symlink,
        () if kind.is_char_device() => FileKind::CharDevice,
        () if kind.is_block_device() => FileKind::BlockDevice,
        () if kind.is_fifo() => FileKind::Fifo,
        () if kind.is_socket() => FileKind::Socket,
        () => FileKind::Other,
    };
    let time = |seconds, nanoseconds: i64| Timestamp {
        seconds,
        nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
    };
    FileMetadata {
        kind,
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        links: metadata.nlink(),
        accessed: time(metadata.atime(), metadata.atime_nsec()),
        modified: time(metadata.mtime(), metadata.mtime_nsec()),
        created: metadata.created().ok().map(timestamp),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    // No file system of the guest tells a birth before 1970.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanoseconds: since.subsec_nanos() }
}

/// Sets what `wanted` names, the length first: it changes times, and an owner's change takes set-id
/// bits away.
pub(super) fn set(path: &Path, follow: bool, wanted: &FileAttributes) -> Done {
    if let Some(size) = wanted.size {
        let file = File::options().write(true).open(path);
        let resized = file.and_then(|file| file.set_len(size));
        resized.map_err(failed("set the length of", path))?;
    }
    if wanted.uid.is_some() || wanted.gid.is_some() {
        let change = if follow { chown } else { lchown };
        change(path, wanted.uid, wanted.gid).map_err(failed("set the owner of", path))?;
    }
    if let Some(mode) = wanted.mode {
        set_mode(path, follow, mode).map_err(failed("set the mode of", path))?;
    }
    if wanted.accessed.is_some() || wanted.modified.is_some() {
        let flags = match follow {
            true => UtimensatFlags::FollowSymlink,
            false => UtimensatFlags::NoFollowSymlink,
        };
        let (accessed, modified) = (time_spec(wanted.accessed), time_spec(wanted.modified));
        let set = utimensat(AT_FDCWD, path, &accessed, &modified, flags);
        set.map_err(|errno| failed("set the times of", path)(errno.into()))?;
    }
    Ok(())
}

fn set_mode(path: &Path, follow: bool, mode: u32) -> io::Result<()> {
    if !follow && fs::symlink_metadata(path)?.is_symlink() {
        // Links have no mode of their own on Linux.
        return Err(nix::errno::Errno::EOPNOTSUPP.into());
    }
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
}

fn time_spec(time: Option<Timestamp>) -> TimeSpec {
    match time {
        None => TimeSpec::UTIME_OMIT,
        Some(Timestamp { seconds, nanoseconds }) => TimeSpec::new(seconds, nanoseconds.into()),
    }
}
