//! The file a layer is written to: sequential, in large pieces, with holes where nothing needs to be written.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use rustix::fs::{Advice, fadvise};

use super::Target;
use crate::error::LayerError;

/// Bytes written at a time: large enough that the cost of a system call vanishes, small enough for the cache.
const BUFFER_BYTES: usize = 512 << 10;

/// Unit, in the file, that becomes a hole when it is zero. Smaller ones would save little and scatter the file.
const HOLE_BYTES: usize = 64 << 10;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Bytes after which the kernel is asked to begin writing: what waits for the end is one long wait there.
const WRITEBACK_BYTES: u64 = 16 << 20;

/// Writes forward only; each byte is written once.
#[derive(Debug)]
pub(super) struct DataWriter<'a> {
    target: Target<'a>,
    buffer: Vec<u8>,
    /// Place in the file of the first buffered byte.
    start: u64,
    /// Up to where the kernel has been asked to begin writing.
    submitted: u64,
}

impl<'a> DataWriter<'a> {
    /// A writer whose first byte goes to `start`.
    pub(super) fn new(target: Target<'a>, start: u64) -> Self {
        Self { target, buffer: Vec::with_capacity(BUFFER_BYTES), start, submitted: 0 }
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
        self.check_limit(position)?;
        match usize::try_from(position - self.position()) {
            Ok(gap) if gap < self.room() => self.buffer.resize(self.buffer.len() + gap, 0),
            _ => {
                self.flush_buffer()?;
                self.start = position;
            }
        }
        Ok(())
    }

    pub(super) fn append(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        self.check_limit(self.position().saturating_add(bytes.len() as u64))?;
        while bytes.len() >= self.room() {
            let (now, later) = bytes.split_at(self.room());
            self.buffer.extend_from_slice(now);
            self.flush_buffer()?;
            bytes = later;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what is buffered, then `head` at the start of the file: an image without it is no image.
    pub(super) fn finish(mut self, head: &[u8]) -> Result<(), LayerError> {
        let end = self.position();
        self.flush_buffer()?;
        self.target.file.set_len(end).map_err(|source| self.fault(source))?;
        self.target.file.write_all_at(head, 0).map_err(|source| self.fault(source))
    }

    /// Bytes until the buffer is written; pieces end at multiples of the buffer's size.
    fn room(&self) -> usize {
        let into_piece = usize::try_from(self.start % BUFFER_BYTES as u64).unwrap_or_default();
        BUFFER_BYTES - into_piece - self.buffer.len()
    }

    fn check_limit(&self, position: u64) -> Result<(), LayerError> {
        let limit = self.target.limits.layer_bytes;
        match position > limit {
            true => Err(LayerError::TooMuch { what: "bytes", limit }),
            false => Ok(()),
        }
    }

    fn flush_buffer(&mut self) -> Result<(), LayerError> {
        write_with_holes(self.target.file, &self.buffer, self.start)
            .map_err(|source| self.fault(source))?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        if self.start - self.submitted >= WRITEBACK_BYTES {
            // "Not needed" makes Linux begin to write what is dirty, and drop what is clean, of which there is nothing
            // yet. It is advice: if it is not taken, the sync at the end waits longer.
            let len = std::num::NonZeroU64::new(self.start - self.submitted);
            let _ = fadvise(self.target.file, self.submitted, len, Advice::DontNeed);
            self.submitted = self.start;
        }
        Ok(())
    }

    fn fault(&self, source: io::Error) -> LayerError {
        LayerError::Write { path: self.target.path.to_owned(), source }
    }
}

/// Writes `bytes` at `offset` of a file that is empty there, but for the units that are zero.
fn write_with_holes(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut written = 0;
    let mut at = usize::try_from(offset.next_multiple_of(HOLE_BYTES as u64) - offset)
        .expect("a unit is shorter than any memory");
    while let Some(unit) = bytes.get(at..at + HOLE_BYTES) {
        if unit == ZEROS {
            file.write_all_at(&bytes[written..at], offset + written as u64)?;
            written = at + HOLE_BYTES;
        }
        at += HOLE_BYTES;
    }
    file.write_all_at(&bytes[written..], offset + written as u64)
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::{BlockSize, Limits};

    #[test]
    fn bytes_come_back_and_long_zeros_take_no_room() {
        let (file, path) = (tempfile::tempfile().unwrap(), std::path::Path::new("test"));
        let limits = Limits::default().with_layer_bytes(100 << 20);
        let block_size = BlockSize::B512;
        let target = Target { file: &file, path, record: &file, block_size, limits };
        let mut writer = DataWriter::new(target, 4096);
        let mut expected = vec![0; 4096];
        for (index, count) in [5, 100_000, 1 << 20, 3, 700_000, 1, 20 << 20].into_iter().enumerate()
        {
            let bytes = vec![u8::try_from(index % 2).unwrap(); count];
            writer.append(&bytes).unwrap();
            expected.extend(bytes);
            writer.align(512).unwrap();
            expected.resize(expected.len().next_multiple_of(512), 0);
        }
        writer.skip_to(60 << 20).unwrap();
        expected.resize(60 << 20, 0);
        assert!(writer.skip_to(101 << 20).is_err());
        let head = vec![9; 4096];
        writer.finish(&head).unwrap();
        expected[..4096].copy_from_slice(&head);
        let mut found = vec![0; expected.len()];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == expected);
        let metadata = file.metadata().unwrap();
        assert_eq!(metadata.len(), 60 << 20);
        assert!(metadata.blocks() * 512 < 2 << 20, "{} blocks", metadata.blocks());
    }
}
