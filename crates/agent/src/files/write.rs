//! Writing one file from standard input, whose end says that the client sent all of it.
//!
//! A client that leaves has this process killed instead: it never sees an end.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use microsandbox_archive::NewFile;
use microsandbox_protocol::WriteMode;
use nix::errno::Errno;

use super::{Done, failed, input};

/// Mode of a file whose client names none, as `creat(2)` gives it under the usual mask.
const NEW_FILE: u32 = 0o644;

/// Writes standard input to `path`.
pub(super) fn write(path: &Path, how: WriteMode, mode: Option<u32>) -> Done {
    let flags = match how {
        WriteMode::Replace => match replaced(path).map_err(failed("look at", path))? {
            Some(target) => return replace(&target, mode).map_err(failed("write", path)),
            None => libc::O_TRUNC,
        },
        WriteMode::Truncate => libc::O_TRUNC,
        WriteMode::Append => libc::O_APPEND,
    };
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(flags | libc::O_CREAT).mode(mode.unwrap_or(NEW_FILE));
    let mut file = options.open(path).map_err(failed("open", path))?;
    io::copy(&mut input()?, &mut file).map(drop).map_err(failed("write", path))
}

/// What a new file takes the place of.
struct Target {
    /// Without links at its end.
    path: PathBuf,
    present: Option<Metadata>,
}

/// The file to take the place of; none when `path` cannot be replaced and is written to instead.
fn replaced(path: &Path) -> io::Result<Option<Target>> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => {
            let path = fs::canonicalize(path)?;
            Ok(Some(Target { path, present: Some(metadata) }))
        }
        // A device or a pipe stays what it is; a directory is refused when it is opened.
        Ok(_) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let dangling = fs::symlink_metadata(path).is_ok();
            Ok((!dangling).then(|| Target { path: path.to_owned(), present: None }))
        }
        Err(error) => Err(error),
    }
}

fn replace(target: &Target, mode: Option<u32>) -> io::Result<()> {
    let Target { path, present } = target;
    let name = path.file_name().ok_or(Errno::EISDIR)?;
    let directory = File::open(parent(path))?;
    let mut new = NewFile::create(directory.as_fd())?;
    let from = &mut input().map_err(|failed| io::Error::from_raw_os_error(failed.errno))?;
    io::copy(from, new.file())?;
    if let Some(present) = present {
        fchown(new.file().as_fd(), Some(present.uid()), Some(present.gid()))?;
    }
    let mode = mode.or_else(|| present.as_ref().map(|present| present.mode() & 0o7777));
    let mode = fs::Permissions::from_mode(mode.unwrap_or(NEW_FILE));
    new.file().set_permissions(mode)?;
    Ok(new.publish(name)?)
}

/// The directory that `path` is in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str() != OsStr::new("") => parent,
        _ => Path::new("/"),
    }
}
