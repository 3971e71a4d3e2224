//! Files piece by piece.

use bytes::{Bytes, BytesMut};
use microsandbox_runtime::{FileStream, StdinWriter, wire::FileOperation};
use tokio::sync::Mutex;

use crate::{MicrosandboxError, MicrosandboxResult, link::Link};

/// Bytes of a file, or of a tar stream, as they are read. Dropping it ends the reading.
#[derive(Debug)]
pub struct FsReadStream {
    link: Link,
    stream: FileStream,
    /// Read ahead so that a file that cannot be opened is an error at once.
    first: Option<Bytes>,
}

impl FsReadStream {
    pub(super) async fn begin(link: &Link, operation: FileOperation) -> MicrosandboxResult<Self> {
        let begun = async {
            let mut stream = link.client.file_call(operation)?;
            let first = stream.next().await?;
            Ok((stream, first))
        };
        let (stream, first) = begun.await.map_err(|error| link.explain(error))?;
        Ok(Self { link: link.clone(), stream, first })
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxFs`], [`MicrosandboxError::SandboxEnded`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn recv(&mut self) -> MicrosandboxResult<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        self.stream.next().await.map_err(|error| self.link.explain(error))
    }

    /// All that is left.
    ///
    /// # Errors
    /// As [`FsReadStream::recv`].
    pub async fn collect(mut self) -> MicrosandboxResult<Bytes> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = self.recv().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok(whole.freeze())
    }
}

/// The way into a file, or of a tar stream into files. Dropping it before [`FsWriteSink::close`]
/// leaves a file as it was.
#[derive(Debug)]
pub struct FsWriteSink {
    link: Link,
    writer: StdinWriter,
    stream: Mutex<FileStream>,
}

impl FsWriteSink {
    pub(super) fn new(link: Link, stream: FileStream) -> Self {
        Self { link, writer: stream.input(), stream: Mutex::new(stream) }
    }

    /// Writes all of `data`; waits while the guest does not take it.
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxFs`], as for a disk that is full;
    /// [`MicrosandboxError::SandboxEnded`]. Nothing more can be written then.
    ///
    /// # Cancel safety
    /// Not cancel safe: how much was written is lost.
    pub async fn write(&self, data: impl AsRef<[u8]>) -> MicrosandboxResult<()> {
        self.write_bytes(Bytes::copy_from_slice(data.as_ref())).await
    }

    pub(super) async fn write_bytes(&self, bytes: Bytes) -> MicrosandboxResult<()> {
        if self.writer.write(bytes).await {
            return Ok(());
        }
        // The guest takes no more: it says why.
        self.stream.lock().await.done().await.map_err(|error| self.link.explain(error))?;
        let broken = std::io::ErrorKind::BrokenPipe.into();
        Err(MicrosandboxError::file("write to", "the sandbox")(broken))
    }

    /// Says that this was all, and waits until it is in place.
    ///
    /// # Errors
    /// As [`FsWriteSink::write`].
    pub async fn close(self) -> MicrosandboxResult<()> {
        self.writer.close();
        let mut stream = self.stream.into_inner();
        stream.done().await.map_err(|error| self.link.explain(error))
    }
}
