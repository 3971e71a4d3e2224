//! Files with holes: where their data lies, and reading that data alone.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use mkext4::SparseSeg;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::BLOCK_BYTES;

/// Zeros in a row that become a hole. Shorter ones would save little and scatter the file.
const HOLE_BYTES: usize = 64 << 10;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// The bytes of a file to be written into an image, holes left out.
#[derive(Debug)]
pub(super) struct Runs<'a> {
    source: Source<'a>,
    size: u64,
    /// Ascending, not touching, at block boundaries but for the end of the last.
    data: VecDeque<Range<u64>>,
}

#[derive(Debug)]
enum Source<'a> {
    Bytes(&'a [u8]),
    File(File),
}

impl<'a> Runs<'a> {
    /// Bytes whose long zeros are holes.
    pub(super) fn of_bytes(bytes: &'a [u8]) -> Self {
        let mut runs =
            Self { source: Source::Bytes(bytes), size: bytes.len() as u64, data: [].into() };
        let mut at = 0;
        for unit in bytes.chunks(HOLE_BYTES) {
            let end = at + unit.len() as u64;
            if *unit != ZEROS[..unit.len()] {
                runs.push(at..end);
            }
            at = end;
        }
        runs
    }

    /// A file whose holes are those that its file system knows.
    pub(super) fn of_file(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut runs = Self { source: Source::File(file), size, data: [].into() };
        let mut at = 0;
        while at < size {
            let Source::File(file) = &runs.source else { break };
            let start = match seek(file, SeekFrom::Data(at)) {
                Ok(start) => start,
                // No data from here on.
                Err(Errno::NXIO) => break,
                // A file system that does not know holes.
                Err(Errno::INVAL) => at,
                Err(error) => return Err(error.into()),
            };
            at = seek(file, SeekFrom::Hole(start)).unwrap_or(size);
            runs.push(start..at);
        }
        Ok(runs)
    }

    /// Bytes of the file, holes included.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn has_data(&self) -> bool {
        !self.data.is_empty()
    }

    /// The file as `mkext4` wants it told; nothing for an empty file.
    pub(super) fn segments(&self) -> Vec<SparseSeg> {
        let mut segments = Vec::new();
        let mut at = 0;
        for run in &self.data {
            segments.push(SparseSeg::Hole(run.start - at));
            segments.push(SparseSeg::Data(run.end - run.start));
            at = run.end;
        }
        segments.push(SparseSeg::Hole(self.size - at));
        segments.retain(|segment| !matches!(segment, SparseSeg::Hole(0)));
        segments
    }

    fn push(&mut self, run: Range<u64>) {
        let start = run.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = run.end.next_multiple_of(BLOCK_BYTES).min(self.size);
        match self.data.back_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => self.data.push_back(start..end),
        }
    }
}

impl Read for Runs<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.data.front().is_some_and(Range::is_empty) {
            self.data.pop_front();
        }
        let Some(run) = self.data.front_mut() else { return Ok(0) };
        let left = usize::try_from(run.end - run.start).unwrap_or(usize::MAX);
        let limit = left.min(buffer.len());
        let count = match &self.source {
            Source::Bytes(bytes) => {
                let start = usize::try_from(run.start).expect("it is a place in memory");
                buffer[..limit].copy_from_slice(&bytes[start..start + limit]);
                limit
            }
            Source::File(file) => file.read_at(&mut buffer[..limit], run.start)?,
        };
        run.start += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_where_the_zeros_are() {
        const UNIT: u64 = HOLE_BYTES as u64;
        let mut bytes = vec![0; 5 * HOLE_BYTES + 100];
        bytes[2 * HOLE_BYTES + 5] = 1;
        bytes[5 * HOLE_BYTES + 99] = 2;
        let runs = || Runs::of_bytes(&bytes);
        assert_eq!(
            runs().segments(),
            [
                SparseSeg::Hole(2 * UNIT),
                SparseSeg::Data(UNIT),
                SparseSeg::Hole(2 * UNIT),
                SparseSeg::Data(100)
            ]
        );
        let mut data = Vec::new();
        runs().read_to_end(&mut data).unwrap();
        let expected = [&bytes[2 * HOLE_BYTES..3 * HOLE_BYTES], &bytes[5 * HOLE_BYTES..]].concat();
        assert!(data == expected);
        assert!(Runs::of_bytes(&[]).segments().is_empty());
        assert_eq!(Runs::of_bytes(&[0; 9]).segments(), [SparseSeg::Hole(9)]);

        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"x", 1_000_000).unwrap();
        file.set_len(3_000_000).unwrap();
        let mut runs = Runs::of_file(file).unwrap();
        assert_eq!(runs.segments().len(), 3, "{:?}", runs.segments());
        let mut data = Vec::new();
        runs.read_to_end(&mut data).unwrap();
        assert!(data.contains(&b'x') && data.len() < 200_000, "{}", data.len());
    }
}
