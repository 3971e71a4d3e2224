//! Operations on whole trees: as tar streams, copies, removal.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use microsandbox_archive::{self as archive, Owners, Pack, Unpack};
use microsandbox_protocol::{FileFailed, FileFailure};
use nix::errno::Errno;

use super::{Done, failed, input, output, write::parent};

/// Sends `path` as a tar stream, called `name` there.
pub(super) fn pack(path: &Path, name: &Path, follow: bool) -> Done {
    archive::pack(output()?, &Pack { path, name, follow }).map_err(|error| told(&error))
}

/// Makes files of the tar stream on standard input below `path`.
pub(super) fn unpack(path: &Path, only: Option<&Path>, owners: bool) -> Done {
    let only = only.map(|name| name.as_os_str().to_owned());
    let owners = if owners { Owners::Stream } else { Owners::Process };
    archive::unpack(input()?, path, &Unpack { only, owners }).map_err(|error| told(&error))
}

/// Copies a file or a tree. A link at the end of `from` stands for its target.
pub(super) fn copy(from: &Path, to: &Path) -> Done {
    let name = to.file_name().ok_or_else(|| failed("copy to", to)(Errno::EINVAL.into()))?;
    let directory = parent(to);
    let real = |path: &Path| fs::canonicalize(path).map_err(failed("look at", path));
    if real(directory)?.starts_with(real(from)?) {
        // It would be copied into itself without end.
        return Err(failed("copy to", to)(Errno::EINVAL.into()));
    }
    let (reader, writer) = io::pipe().map_err(failed("copy", from))?;
    let how = Unpack { only: Some(name.to_owned()), owners: Owners::Stream };
    let (packed, unpacked) = thread::scope(|scope| {
        let what = Pack { path: from, name: Path::new(name), follow: true };
        let packer = scope.spawn(move || archive::pack(writer, &what));
        let unpacked = archive::unpack(reader, directory, &how);
        let packed = packer.join().unwrap_or(Ok(()));
        (packed, unpacked)
    });
    match (packed, unpacked) {
        // The reader ended first, and says why.
        (Ok(()) | Err(archive::Error::Write(_)), unpacked) => {
            unpacked.map_err(|error| told(&error))
        }
        (Err(error), _) => Err(told(&error)),
    }
}

/// Removes a directory; links in it are removed, not followed.
pub(super) fn remove(path: &Path, recursive: bool) -> Done {
    let remove = || {
        if !recursive {
            return fs::remove_dir(path);
        }
        if !fs::symlink_metadata(path)?.is_dir() {
            return Err(Errno::ENOTDIR.into());
        }
        if fs::canonicalize(path)? == Path::new("/") {
            return Err(Errno::EBUSY.into());
        }
        fs::remove_dir_all(path)
    };
    remove().map_err(failed("remove", path))
}

/// As the wire has it.
fn told(error: &archive::Error) -> FileFailed {
    let failure = match error {
        archive::Error::Changed { .. } => FileFailure::Changed,
        archive::Error::Malformed { .. } => FileFailure::BadArchive,
        archive::Error::Refused { .. } => FileFailure::RefusedMember,
        _ => FileFailure::Kernel,
    };
    let action = match error {
        archive::Error::File { action, .. } => (*action).to_owned(),
        archive::Error::Malformed { .. } => error.to_string(),
        archive::Error::Refused { refusal, .. } => refusal.to_string(),
        archive::Error::Changed { .. } => "read".to_owned(),
        _ => error.to_string(),
    };
    let path = error.path().map(Path::as_os_str).unwrap_or_default();
    FileFailed {
        failure,
        errno: error.io().and_then(io::Error::raw_os_error).unwrap_or(0),
        action,
        path: path.as_bytes().to_vec(),
    }
}
