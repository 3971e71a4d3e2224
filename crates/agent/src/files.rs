//! One file operation, in a process of its own.
//!
//! A file system that hangs, a tree without end or a full memory costs this process and nobody else;
//! a client that leaves has it killed, and what it was writing has no name yet. It runs as root and
//! blocks where it likes: the agent proper is elsewhere.
//!
//! ```text
//!  stdin   bytes to write, a tar stream
//!  stdout  bytes, records, a tar stream      exit code 0: done
//!  stderr  one FileFailed                    exit code 1
//! ```

mod attributes;
mod tree;
mod write;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::Path;

use microsandbox_protocol::{
    FileCall, FileEntry, FileFailed, FileFailure, FileOperation, MAX_PATH_LEN, PathBytes, to_record,
};
use nix::errno::Errno;

use crate::error::Error;

/// Result of one operation.
type Done = Result<(), FileFailed>;

/// Does the operation that `argument` encodes.
///
/// # Errors
/// [`Error::FileOperation`], after standard error has the details.
pub(crate) fn run(argument: Option<OsString>) -> Result<(), Error> {
    let argument = argument.unwrap_or_default();
    let done = match FileCall::from_argument(argument.as_bytes()) {
        Some(call) => perform(call.operation),
        None => Err(bad_request("read the request", b"")),
    };
    done.map_err(|failed| {
        // A client that has gone needs no answer.
        let _unread = io::stderr().write_all(&failed.to_bytes());
        Error::FileOperation
    })
}

fn perform(operation: FileOperation) -> Done {
    match operation {
        FileOperation::Stat { path, follow } => attributes::stat(checked(&path)?, follow),
        FileOperation::List { path } => list(checked(&path)?),
        FileOperation::Read { path, offset, len } => read(checked(&path)?, offset, len),
        FileOperation::Write { path, how, mode } => write::write(checked(&path)?, how, mode),
        FileOperation::MakeDirectory { path, parents, mode } => {
            let path = checked(&path)?;
            let made = fs::DirBuilder::new().recursive(parents).mode(mode).create(path);
            made.map_err(failed("make the directory", path))
        }
        FileOperation::Remove { path } => {
            let path = checked(&path)?;
            fs::remove_file(path).map_err(failed("remove", path))
        }
        FileOperation::RemoveDirectory { path, recursive } => {
            tree::remove(checked(&path)?, recursive)
        }
        FileOperation::Rename { from, to } => {
            let (from, to) = (checked(&from)?, checked(&to)?);
            fs::rename(from, to).map_err(failed("rename", from))
        }
        FileOperation::Copy { from, to } => tree::copy(checked(&from)?, checked(&to)?),
        FileOperation::Symlink { target, path } => {
            let (target, path) = (checked(&target)?, checked(&path)?);
            symlink(target, path).map_err(failed("make the link", path))
        }
        FileOperation::ReadLink { path } => {
            let path = checked(&path)?;
            let target = fs::read_link(path).map_err(failed("read the link", path))?;
            output()?.write_all(target.as_os_str().as_bytes()).map_err(failed("send", path))
        }
        FileOperation::SetAttributes { path, follow, attributes } => {
            attributes::set(checked(&path)?, follow, &attributes)
        }
        FileOperation::Pack { path, name, follow } => {
            tree::pack(checked(&path)?, as_path(&name), follow)
        }
        FileOperation::Unpack { path, only, owners } => {
            tree::unpack(checked(&path)?, only.as_ref().map(as_path), owners)
        }
    }
}

fn list(path: &Path) -> Done {
    let failed = |error| because("list", path, error);
    let mut output = BufWriter::new(output()?);
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let metadata = match entry.metadata() {
            // It was there when the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata.map_err(failed)?,
        };
        let name = entry.file_name().as_bytes().to_vec();
        let record = FileEntry { name, metadata: attributes::describe(&metadata) };
        output.write_all(&to_record(&record)).map_err(failed)?;
    }
    output.flush().map_err(failed)
}

fn read(path: &Path, offset: u64, len: Option<u64>) -> Done {
    let mut file = File::open(path).map_err(failed("open", path))?;
    let failed = |error| because("read", path, error);
    if offset > 0 {
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    }
    let mut output = output()?;
    // The kernel moves the bytes where it can.
    let copied = match len {
        Some(len) => io::copy(&mut file.take(len), &mut output),
        None => io::copy(&mut file, &mut output),
    };
    copied.map(drop).map_err(failed)
}

/// Standard input, without a buffer of its own.
fn input() -> Result<File, FileFailed> {
    let fd = io::stdin().as_fd().try_clone_to_owned();
    fd.map(File::from).map_err(failed("open", Path::new("standard input")))
}

/// Standard output, without a buffer of its own.
fn output() -> Result<File, FileFailed> {
    let fd = io::stdout().as_fd().try_clone_to_owned();
    fd.map(File::from).map_err(failed("open", Path::new("standard output")))
}

fn as_path(bytes: &PathBytes) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// A path that the kernel can be asked about.
fn checked(path: &PathBytes) -> Result<&Path, FileFailed> {
    if path.is_empty() || path.len() > MAX_PATH_LEN || path.contains(&0) {
        return Err(bad_request("use the path", &path[..path.len().min(MAX_PATH_LEN)]));
    }
    Ok(as_path(path))
}

fn bad_request(action: &str, path: &[u8]) -> FileFailed {
    let (failure, errno) = (FileFailure::BadRequest, Errno::EINVAL as i32);
    FileFailed { failure, errno, action: action.to_owned(), path: path.to_vec() }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileFailed {
    move |error| because(action, path, error)
}

#[expect(clippy::needless_pass_by_value, reason = "errors are handed over as `map_err` has them")]
fn because(action: &str, path: &Path, error: io::Error) -> FileFailed {
    FileFailed {
        failure: FileFailure::Kernel,
        errno: error.raw_os_error().unwrap_or(Errno::EIO as i32),
        action: action.to_owned(),
        path: path.as_os_str().as_bytes().to_vec(),
    }
}
