//! Trees between host and sandbox: a tar stream, packed at one end and unpacked at the other.
//!
//! ```text
//!  host tree ─pack─▶ channel ─▶ FsWriteSink ─▶ guest unpacks        from host
//!  host tree ◀unpack─ channel ◀─ FsReadStream ◀─ guest packs        to host
//! ```
//!
//! Files of the host are read and written on a thread that may block. What comes from the guest is
//! not believed: nothing is made beside the path that was asked for, no devices, no set-id bits.

use std::{
    ffi::OsString,
    fmt,
    io::{self, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use microsandbox_archive::{self as archive, Owners, Pack, Unpack};
use microsandbox_runtime::wire::{FileOperation, PathBytes};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, spawn_blocking},
};

use super::{FsReadStream, FsWriteSink, SandboxFs, bytes};
use crate::{MicrosandboxError, MicrosandboxResult};

/// Pieces of a stream under way between the thread and the sandbox.
const QUEUE: usize = 4;

/// How to copy.
#[derive(Clone)]
#[must_use]
pub struct FsCopyOptions {
    pub(super) owners: bool,
    pub(super) follow: bool,
    progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl Default for FsCopyOptions {
    fn default() -> Self {
        Self { owners: false, follow: true, progress: None }
    }
}

impl fmt::Debug for FsCopyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { owners, follow, progress: _ } = self;
        f.debug_struct("FsCopyOptions").field("owners", owners).field("follow", follow).finish()
    }
}

impl FsCopyOptions {
    /// Copies are owned as the originals are, with set-id bits, and devices are made. Default: they
    /// belong to root in the sandbox and to this process's user on the host.
    pub fn keep_owners(mut self) -> Self {
        self.owners = true;
        self
    }

    /// A link at the end of the source's path is copied itself. Default: it stands for its target.
    /// Links within a tree are always copied as they are.
    pub fn keep_links(mut self) -> Self {
        self.follow = false;
        self
    }

    /// Calls `report` with the number of bytes that have moved since the last call.
    pub fn progress(mut self, report: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }

    fn moved(&self, bytes: usize) {
        if let Some(report) = &self.progress {
            report(bytes as u64);
        }
    }

    const fn whose(&self) -> Owners {
        if self.owners { Owners::Stream } else { Owners::Process }
    }
}

impl SandboxFs<'_> {
    /// Copies a file or a tree of the host into the sandbox, with modes, times, links and holes.
    ///
    /// `guest_path` is the copy's own path; the directory it is in must be there. Directories are
    /// merged with those that are there, files are replaced. The copies belong to root.
    ///
    /// # Errors
    /// [`MicrosandboxError::Copy`] for the host's side, [`MicrosandboxError::SandboxFs`] for the
    /// guest's. Some of a tree may have been copied; a file is whole or as it was.
    ///
    /// # Cancel safety
    /// Dropping the future ends the copying, with the same consequence.
    pub async fn copy_from_host(
        &self,
        host_path: impl AsRef<Path>,
        guest_path: impl AsRef<Path>,
    ) -> MicrosandboxResult<()> {
        self.copy_from_host_with(host_path, guest_path, &FsCopyOptions::default()).await
    }

    /// As [`SandboxFs::copy_from_host`] with options.
    ///
    /// # Errors
    /// As [`SandboxFs::copy_from_host`].
    ///
    /// # Cancel safety
    /// As [`SandboxFs::copy_from_host`].
    pub async fn copy_from_host_with(
        &self,
        host_path: impl AsRef<Path>,
        guest_path: impl AsRef<Path>,
        options: &FsCopyOptions,
    ) -> MicrosandboxResult<()> {
        let (directory, name) = split(guest_path.as_ref(), Path::new("/"));
        let sink = self.place(&directory, name.as_ref(), options)?;
        let name = PathBuf::from(name.unwrap_or_default());
        let (mut pieces, packed) = pack_host(host_path.as_ref().to_owned(), name, options.follow);
        while let Some(piece) = pieces.recv().await {
            options.moved(piece.len());
            sink.write_bytes(piece).await?;
        }
        // Only a stream that is whole gets its end.
        joined(packed.await)?;
        sink.close().await
    }

    /// Copies a file or a tree of the sandbox to the host, with modes, times, links and holes.
    ///
    /// `host_path` is the copy's own path; the directory it is in must be there. Directories are
    /// merged with those that are there, files are replaced. The copies belong to the user of this
    /// process; set-id bits are not taken and devices are refused.
    ///
    /// # Errors
    /// As [`SandboxFs::copy_from_host`].
    ///
    /// # Cancel safety
    /// As [`SandboxFs::copy_from_host`].
    pub async fn copy_to_host(
        &self,
        guest_path: impl AsRef<Path>,
        host_path: impl AsRef<Path>,
    ) -> MicrosandboxResult<()> {
        self.copy_to_host_with(guest_path, host_path, &FsCopyOptions::default()).await
    }

    /// As [`SandboxFs::copy_to_host`] with options.
    ///
    /// # Errors
    /// As [`SandboxFs::copy_from_host`].
    ///
    /// # Cancel safety
    /// As [`SandboxFs::copy_from_host`].
    pub async fn copy_to_host_with(
        &self,
        guest_path: impl AsRef<Path>,
        host_path: impl AsRef<Path>,
        options: &FsCopyOptions,
    ) -> MicrosandboxResult<()> {
        let (directory, name) = split(host_path.as_ref(), Path::new("."));
        let packed_name = PathBuf::from(name.clone().unwrap_or_default());
        let mut stream = self.pack_with(guest_path, packed_name, options).await?;
        let how = Unpack { only: name, owners: options.whose() };
        let (pieces, unpacked) = unpack_host(directory, how);
        let sent = loop {
            match stream.recv().await {
                Ok(Some(piece)) => {
                    options.moved(piece.len());
                    if pieces.send(Ok(piece)).await.is_err() {
                        // It stopped, and says why.
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(error) => {
                    // What has come is no whole stream, whatever it looks like.
                    let cut = io::ErrorKind::UnexpectedEof.into();
                    let _stopped = pieces.send(Err(cut)).await;
                    break Err(error);
                }
            }
        };
        drop(pieces);
        let unpacked = joined(unpacked.await);
        sent.and(unpacked)
    }

    /// Copies a file or a tree into another sandbox; nothing of it touches the host.
    ///
    /// # Errors
    /// As [`SandboxFs::copy_from_host`].
    ///
    /// # Cancel safety
    /// As [`SandboxFs::copy_from_host`].
    pub async fn copy_to_sandbox(
        &self,
        path: impl AsRef<Path>,
        other: SandboxFs<'_>,
        other_path: impl AsRef<Path>,
        options: &FsCopyOptions,
    ) -> MicrosandboxResult<()> {
        let (directory, name) = split(other_path.as_ref(), Path::new("/"));
        let packed_name = PathBuf::from(name.clone().unwrap_or_default());
        let mut stream: FsReadStream = self.pack_with(path, packed_name, options).await?;
        let sink = other.place(&directory, name.as_ref(), options)?;
        while let Some(piece) = stream.recv().await? {
            options.moved(piece.len());
            sink.write_bytes(piece).await?;
        }
        sink.close().await
    }

    /// Unpacks into a directory of the guest; with a name, only what is called that.
    pub(super) fn place(
        &self,
        directory: &Path,
        name: Option<&OsString>,
        options: &FsCopyOptions,
    ) -> MicrosandboxResult<FsWriteSink> {
        let only = name.map(|name| PathBytes::from(name.as_bytes().to_vec()));
        let (path, owners) = (bytes(directory), options.owners);
        self.sink(FileOperation::Unpack { path, only, owners })
    }
}

/// The directory a path is in, and its name there; `/`, `.` and `..` have none: what is copied there
/// are the members of a directory.
fn split(path: &Path, start: &Path) -> (PathBuf, Option<OsString>) {
    let trailing_dot = path.as_os_str().as_bytes().ends_with(b"/.");
    match path.file_name().filter(|_| !trailing_dot) {
        None => (start.join(path), None),
        Some(name) => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            (
                parent.map_or_else(|| start.to_owned(), |parent| start.join(parent)),
                Some(name.into()),
            )
        }
    }
}

type Archived = JoinHandle<archive::Result<()>>;

fn joined(done: Result<archive::Result<()>, tokio::task::JoinError>) -> MicrosandboxResult<()> {
    match done {
        Ok(done) => done.map_err(MicrosandboxError::Copy),
        Err(error) => {
            let error = io::Error::other(error);
            Err(MicrosandboxError::file("copy", "files of the host")(error))
        }
    }
}

/// Packs on a thread; it stops when the receiver is dropped.
fn pack_host(path: PathBuf, name: PathBuf, follow: bool) -> (mpsc::Receiver<Bytes>, Archived) {
    let (sender, pieces) = mpsc::channel(QUEUE);
    let task = spawn_blocking(move || {
        archive::pack(ToChannel(sender), &Pack { path: &path, name: &name, follow })
    });
    (pieces, task)
}

/// Unpacks on a thread; it stops with an error when the sender is dropped before the stream's end.
fn unpack_host(directory: PathBuf, how: Unpack) -> (mpsc::Sender<io::Result<Bytes>>, Archived) {
    let (sender, pieces) = mpsc::channel(QUEUE);
    let from = FromChannel { pieces, piece: Bytes::new() };
    (sender, spawn_blocking(move || archive::unpack(from, &directory, &how)))
}

struct ToChannel(mpsc::Sender<Bytes>);

impl Write for ToChannel {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(bytes));
        sent.map(|()| bytes.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct FromChannel {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for FromChannel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let len = self.piece.len().min(buffer.len());
        self.piece.split_to(len).copy_to_slice(&mut buffer[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_a_directory_and_a_name() {
        for (path, directory, name) in [
            ("/a/b", "/a", Some("b")),
            ("/b", "/", Some("b")),
            ("b", "/", Some("b")),
            ("a/b/", "/a", Some("b")),
            ("/", "/", None),
            ("/a/.", "/a/.", None),
            ("/a/..", "/a/..", None),
        ] {
            let (found, found_name) = split(Path::new(path), Path::new("/"));
            assert_eq!(found, Path::new(directory), "{path}");
            assert_eq!(found_name, name.map(OsString::from), "{path}");
        }
    }
}
