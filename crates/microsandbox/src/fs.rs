//! Files of a running sandbox: read, write, list, change, copy in and out.
//!
//! Everything is done as root in the guest. A relative path begins at `/`. An operation that is
//! dropped is undone where it has made nothing visible yet; a file that [`SandboxFs::write`] or a copy
//! makes appears whole or not at all.

mod copy;
mod metadata;
mod stream;

use std::{os::unix::ffi::OsStrExt, path::Path};

use bytes::Bytes;
use microsandbox_runtime::{
    FileStream,
    wire::{FileEntry, FileMetadata, FileOperation, PathBytes, RecordDecoder, WriteMode},
};
use serde::de::DeserializeOwned;

pub use copy::FsCopyOptions;
pub use metadata::{FsEntry, FsEntryKind, FsMetadata, FsSetAttrs};
pub use stream::{FsReadStream, FsWriteSink};

use crate::{MicrosandboxError, MicrosandboxResult, link::Link};

/// Mode of a directory that is made.
const NEW_DIRECTORY: u32 = 0o755;

/// The files of a running sandbox.
#[derive(Debug, Clone, Copy)]
pub struct SandboxFs<'a> {
    link: &'a Link,
}

impl<'a> SandboxFs<'a> {
    pub(crate) const fn new(link: &'a Link) -> Self {
        Self { link }
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxFs`] with error number, operation and path, as from every method
    /// here; [`MicrosandboxError::SandboxEnded`] when the sandbox ended first.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read(&self, path: impl AsRef<Path>) -> MicrosandboxResult<Bytes> {
        self.read_stream(path).await?.collect().await
    }

    /// Reads a whole file as text.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; [`MicrosandboxError::File`] when it is not UTF-8.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read_to_string(&self, path: impl AsRef<Path>) -> MicrosandboxResult<String> {
        let path = path.as_ref();
        let text = String::from_utf8(self.read(path).await?.into());
        text.map_err(|error| {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidData, error);
            MicrosandboxError::file("read as text", path)(error)
        })
    }

    /// Reads a file piece by piece. What is not taken is not read.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; a file that cannot be opened is an error at once.
    pub async fn read_stream(&self, path: impl AsRef<Path>) -> MicrosandboxResult<FsReadStream> {
        let operation = FileOperation::Read { path: bytes(path), offset: 0, len: None };
        FsReadStream::begin(self.link, operation).await
    }

    /// Reads `len` bytes from `offset`, fewer where the file ends.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read_range(
        &self,
        path: impl AsRef<Path>,
        offset: u64,
        len: u64,
    ) -> MicrosandboxResult<Bytes> {
        let operation = FileOperation::Read { path: bytes(path), offset, len: Some(len) };
        FsReadStream::begin(self.link, operation).await?.collect().await
    }

    /// Writes a whole file, which takes the place of one that is there in one step.
    ///
    /// A new file has mode 0644; one that is there keeps its mode and owner. A link stands for its
    /// target.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; the file is as it was then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the file as it was.
    pub async fn write(
        &self,
        path: impl AsRef<Path>,
        data: impl AsRef<[u8]>,
    ) -> MicrosandboxResult<()> {
        let sink = self.write_stream(path).await?;
        sink.write(data).await?;
        sink.close().await
    }

    /// Writes a file piece by piece; it appears as with [`SandboxFs::write`] when the sink is closed.
    ///
    /// # Errors
    /// As [`SandboxFs::read`], here or from the sink.
    pub async fn write_stream(&self, path: impl AsRef<Path>) -> MicrosandboxResult<FsWriteSink> {
        self.sink(FileOperation::Write { path: bytes(path), how: WriteMode::Replace, mode: None })
    }

    /// Writes at the end of a file, which is made if it is not there.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; some of `data` may have been written.
    pub async fn append(
        &self,
        path: impl AsRef<Path>,
        data: impl AsRef<[u8]>,
    ) -> MicrosandboxResult<()> {
        let how = WriteMode::Append;
        let sink = self.sink(FileOperation::Write { path: bytes(path), how, mode: None })?;
        sink.write(data).await?;
        sink.close().await
    }

    /// What is in a directory, ordered by name.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn list(&self, path: impl AsRef<Path>) -> MicrosandboxResult<Vec<FsEntry>> {
        let path = path.as_ref();
        let entries = self.records(FileOperation::List { path: bytes(path) }).await?;
        let mut entries: Vec<FsEntry> =
            entries.into_iter().map(|entry: FileEntry| FsEntry::new(path, entry)).collect();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// Makes a directory and those above it; one that is there is no error.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn mkdir(&self, path: impl AsRef<Path>) -> MicrosandboxResult<()> {
        let (path, mode) = (bytes(path), NEW_DIRECTORY);
        self.run(FileOperation::MakeDirectory { path, parents: true, mode }).await
    }

    /// Removes anything but a directory. A link is removed, not what it leads to.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn remove(&self, path: impl AsRef<Path>) -> MicrosandboxResult<()> {
        self.run(FileOperation::Remove { path: bytes(path) }).await
    }

    /// Removes a directory with all that is in it. Links are removed, not followed.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; some of it may be gone.
    pub async fn remove_dir(&self, path: impl AsRef<Path>) -> MicrosandboxResult<()> {
        self.run(FileOperation::RemoveDirectory { path: bytes(path), recursive: true }).await
    }

    /// Removes a directory that is empty.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn remove_empty_dir(&self, path: impl AsRef<Path>) -> MicrosandboxResult<()> {
        self.run(FileOperation::RemoveDirectory { path: bytes(path), recursive: false }).await
    }

    /// Copies a file or a tree within the sandbox, with modes, owners, times, links and holes.
    ///
    /// `to` is the copy's own path. Directories are merged with those that are there, files are
    /// replaced.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; some of a tree may have been copied.
    pub async fn copy(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> MicrosandboxResult<()> {
        self.run(FileOperation::Copy { from: bytes(from), to: bytes(to) }).await
    }

    /// Renames within one file system of the guest, replacing a file that is there.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn rename(
        &self,
        from: impl AsRef<Path>,
        to: impl AsRef<Path>,
    ) -> MicrosandboxResult<()> {
        self.run(FileOperation::Rename { from: bytes(from), to: bytes(to) }).await
    }

    /// What is at `path`. A link stands for its target.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stat(&self, path: impl AsRef<Path>) -> MicrosandboxResult<FsMetadata> {
        self.metadata(FileOperation::Stat { path: bytes(path), follow: true }).await
    }

    /// As [`SandboxFs::stat`], but a link is told itself.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn stat_link(&self, path: impl AsRef<Path>) -> MicrosandboxResult<FsMetadata> {
        self.metadata(FileOperation::Stat { path: bytes(path), follow: false }).await
    }

    /// Whether there is something at `path`. A link stands for its target.
    ///
    /// # Errors
    /// As [`SandboxFs::read`], when it cannot be found out.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn exists(&self, path: impl AsRef<Path>) -> MicrosandboxResult<bool> {
        use std::io::ErrorKind::{NotADirectory, NotFound};
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(MicrosandboxError::SandboxFs(error))
                if matches!(error.io_kind(), NotFound | NotADirectory) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a symbolic link at `path` that says `target`.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn symlink(
        &self,
        target: impl AsRef<Path>,
        path: impl AsRef<Path>,
    ) -> MicrosandboxResult<()> {
        self.run(FileOperation::Symlink { target: bytes(target), path: bytes(path) }).await
    }

    /// What a symbolic link says.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn read_link(
        &self,
        path: impl AsRef<Path>,
    ) -> MicrosandboxResult<std::path::PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let operation = FileOperation::ReadLink { path: bytes(path) };
        let target = FsReadStream::begin(self.link, operation).await?.collect().await?;
        Ok(std::ffi::OsString::from_vec(target.into()).into())
    }

    /// Sets mode, owner, length or times. A link stands for its target.
    ///
    /// # Errors
    /// As [`SandboxFs::read`]; what comes before the failed one, in the order of the fields, is set.
    pub async fn set_attrs(
        &self,
        path: impl AsRef<Path>,
        attrs: FsSetAttrs,
    ) -> MicrosandboxResult<()> {
        let (path, attributes) = (bytes(path), attrs.into());
        self.run(FileOperation::SetAttributes { path, follow: true, attributes }).await
    }

    /// Sends a file or a tree as a tar stream, in which it is called `name`; with an empty name a
    /// directory's members stand at the top.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn pack(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<Path>,
    ) -> MicrosandboxResult<FsReadStream> {
        self.pack_with(path, name, &FsCopyOptions::default().keep_links()).await
    }

    /// As [`SandboxFs::pack`] with options.
    ///
    /// # Errors
    /// As [`SandboxFs::read`].
    pub async fn pack_with(
        &self,
        path: impl AsRef<Path>,
        name: impl AsRef<Path>,
        options: &FsCopyOptions,
    ) -> MicrosandboxResult<FsReadStream> {
        let (path, name) = (bytes(path), bytes(name));
        let operation = FileOperation::Pack { path, name, follow: options.follow };
        FsReadStream::begin(self.link, operation).await
    }

    /// Takes a tar stream and makes its files in the directory `path`, and nowhere else.
    ///
    /// # Errors
    /// As [`SandboxFs::read`], from the sink; some of the files may have been made.
    pub async fn unpack(&self, path: impl AsRef<Path>) -> MicrosandboxResult<FsWriteSink> {
        self.unpack_with(path, &FsCopyOptions::default()).await
    }

    /// As [`SandboxFs::unpack`] with options.
    ///
    /// # Errors
    /// As [`SandboxFs::unpack`].
    pub async fn unpack_with(
        &self,
        path: impl AsRef<Path>,
        options: &FsCopyOptions,
    ) -> MicrosandboxResult<FsWriteSink> {
        self.place(path.as_ref(), None, options)
    }

    fn begin(&self, operation: FileOperation) -> MicrosandboxResult<FileStream> {
        self.link.client.file_call(operation).map_err(|error| self.link.explain(error))
    }

    fn sink(&self, operation: FileOperation) -> MicrosandboxResult<FsWriteSink> {
        Ok(FsWriteSink::new(self.link.clone(), self.begin(operation)?))
    }

    async fn run(&self, operation: FileOperation) -> MicrosandboxResult<()> {
        let done = self.begin(operation)?.done().await;
        done.map_err(|error| self.link.explain(error))
    }

    async fn metadata(&self, operation: FileOperation) -> MicrosandboxResult<FsMetadata> {
        let mut records: Vec<FileMetadata> = self.records(operation).await?;
        records.pop().map(FsMetadata::from).ok_or_else(no_answer)
    }

    async fn records<T: DeserializeOwned>(
        &self,
        operation: FileOperation,
    ) -> MicrosandboxResult<Vec<T>> {
        let mut stream = self.begin(operation)?;
        let (mut decoder, mut records) = (RecordDecoder::default(), Vec::new());
        while let Some(bytes) = stream.next().await.map_err(|error| self.link.explain(error))? {
            decoder.push(&bytes);
            while let Some(record) = decoder.next_record().map_err(|_| no_answer())? {
                records.push(record);
            }
        }
        Ok(records)
    }
}

fn no_answer() -> MicrosandboxError {
    microsandbox_runtime::Error::Closed { during: "the answer to a file operation" }.into()
}

fn bytes(path: impl AsRef<Path>) -> PathBytes {
    PathBytes::from(path.as_ref().as_os_str().as_bytes().to_vec())
}
