//! File operations in the guest: one stream each.

use bytes::Bytes;
use microsandbox_protocol::{DEFAULT_WINDOW_BYTES, FileCall, FileFailed, FileOperation};

use super::{AgentClient, ExecStream, ExecUpdate, StdinWriter};
use crate::{Error, Result};

/// One file operation. Dropping it before its end undoes what it was writing.
#[derive(Debug)]
pub struct FileStream {
    stream: ExecStream,
    /// What the process said of its failure.
    told: Vec<u8>,
}

/// A failure takes a path and a few words; what comes beyond that is no failure.
const TOLD_MAX: usize = 64 << 10;

impl AgentClient {
    /// Begins a file operation.
    ///
    /// # Errors
    /// [`Error::TooLong`] before anything is sent; [`Error::Closed`] when the sandbox has ended.
    pub fn file_call(&self, operation: FileOperation) -> Result<FileStream> {
        let call = FileCall { window: DEFAULT_WINDOW_BYTES, operation };
        let stream = self.open(&call, "a file operation".to_owned(), call.window)?;
        Ok(FileStream { stream, told: Vec::new() })
    }
}

impl FileStream {
    /// What comes next of the operation's bytes; `None` once it has been done.
    ///
    /// # Errors
    /// [`Error::FileCall`] when it could not be done, [`Error::FileProcess`] when its process ended
    /// otherwise, [`Error::Unsupported`], [`Error::Exec`] when it could not be started,
    /// [`Error::Closed`] when the sandbox ended first.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        while let Some(update) = self.stream.next().await? {
            match update {
                ExecUpdate::Started { .. } | ExecUpdate::Detached(_) | ExecUpdate::NotDetached => {}
                ExecUpdate::Stdout(bytes) => return Ok(Some(bytes)),
                ExecUpdate::Stderr(bytes) => {
                    let room = TOLD_MAX.saturating_sub(self.told.len());
                    self.told.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                ExecUpdate::Exited(exited) => return self.ended(exited.status.shell_code()),
            }
        }
        Ok(None)
    }

    fn ended(&self, code: i32) -> Result<Option<Bytes>> {
        match (code, FileFailed::from_bytes(&self.told)) {
            (0, _) => Ok(None),
            (1, Some(failed)) => Err(Error::FileCall { failed }),
            _ => {
                let message = String::from_utf8_lossy(&self.told).into_owned();
                Err(Error::FileProcess { code, message })
            }
        }
    }

    /// Waits for the end; what still comes is dropped.
    ///
    /// # Errors
    /// As [`FileStream::next`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn done(&mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// The way in for an operation that takes bytes.
    pub fn input(&self) -> StdinWriter {
        self.stream.stdin()
    }
}
