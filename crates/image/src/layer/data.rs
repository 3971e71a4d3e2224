//! The file a layer is written to: sequential, buffered, with holes where nothing needs to be written.

use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::{MAX_LAYER_BYTES, Target};
use crate::error::LayerError;

/// Large enough that the cost of a system call vanishes, small enough to stay in the cache.
const BUFFER_BYTES: usize = 512 << 10;

/// Writes forward only; each byte is written once.
#[derive(Debug)]
pub(super) struct DataWriter<'a> {
    target: Target<'a>,
    buffer: Vec<u8>,
    /// Place in the file of the first buffered byte.
    start: u64,
}

impl<'a> DataWriter<'a> {
    /// A writer whose first byte goes to `start`.
    pub(super) fn new(target: Target<'a>, start: u64) -> Self {
        Self { target, buffer: Vec::with_capacity(BUFFER_BYTES), start }
    }

    pub(super) fn position(&self) -> u64 {
        self.start + self.buffer.len() as u64
    }

    /// Moves on to the next multiple of `unit`.
    pub(super) fn align(&mut self, unit: u64) -> Result<(), LayerError> {
        self.skip_to(self.position().next_multiple_of(unit))
    }

    /// Moves on to `position`, leaving zeros behind.
    pub(super) fn skip_to(&mut self, position: u64) -> Result<(), LayerError> {
        if position > MAX_LAYER_BYTES {
            return Err(LayerError::TooMuch { what: "bytes", limit: MAX_LAYER_BYTES });
        }
        let gap = position - self.position();
        match usize::try_from(gap) {
            Ok(gap) if gap < BUFFER_BYTES - self.buffer.len() => {
                self.buffer.resize(self.buffer.len() + gap, 0);
            }
            _ => {
                self.flush_buffer()?;
                self.start = position;
            }
        }
        Ok(())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        if self.position() + bytes.len() as u64 > MAX_LAYER_BYTES {
            return Err(LayerError::TooMuch { what: "bytes", limit: MAX_LAYER_BYTES });
        }
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush_buffer()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            self.write_at(bytes, self.start)?;
            self.start += bytes.len() as u64;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// Writes what is buffered, then `head` at the start of the file: an image without it is no image.
    pub(super) fn finish(mut self, head: &[u8]) -> Result<(), LayerError> {
        let end = self.position();
        self.flush_buffer()?;
        self.target.file.set_len(end).map_err(|source| self.fault(source))?;
        self.write_at(head, 0)
    }

    fn flush_buffer(&mut self) -> Result<(), LayerError> {
        self.write_at(&self.buffer, self.start)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), LayerError> {
        self.target.file.write_all_at(bytes, offset).map_err(|source| self.fault(source))
    }

    fn fault(&self, source: io::Error) -> LayerError {
        LayerError::Write { path: self.target.path.to_owned(), source }
    }
}

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(|fault| match fault {
            LayerError::Write { source, .. } => source,
            other => io::Error::other(other),
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
