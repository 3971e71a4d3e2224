//! The memory of a guest as a file: only what is not zero, in blocks.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    os::unix::fs::FileExt,
};

use rustix::fs::{SeekFrom, seek};
use serde::{Deserialize, Serialize};

/// Unit in which memory is zero or stored. Smaller ones save little: what a kernel uses lies
/// together. Larger ones store more zeros.
const BLOCK: usize = 64 << 10;

/// Read and hashed at a time: fits the second-level cache of a processor core.
const CHUNK: usize = 256 << 10;

/// Where the stored bytes belong.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Layout {
    /// Size of the machine's memory.
    size_bytes: u64,
    /// What is stored, ascending; everything between is zero.
    extents: Vec<Extent>,
    /// BLAKE3 over the extents in their order: offset and length, 64 bits little-endian each, then
    /// the bytes.
    digest: String,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Extent {
    offset: u64,
    len: u64,
}

impl Layout {
    pub(super) fn stored_bytes(&self) -> u64 {
        self.extents.iter().fold(0, |sum, extent| sum.saturating_add(extent.len))
    }

    /// Copies what is stored to its place in `memory`; says whether it was what had been saved.
    pub(super) fn fill(&self, stored: &mut File, memory: &File) -> io::Result<bool> {
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK];
        for extent in &self.extents {
            let end = extent.offset.checked_add(extent.len);
            if end.is_none_or(|end| end > self.size_bytes) {
                return Ok(false);
            }
            extent.head(&mut hasher);
            let mut done = 0;
            while done < extent.len {
                let left = usize::try_from(extent.len - done).unwrap_or(CHUNK);
                let piece = &mut chunk[..left.min(CHUNK)];
                stored.read_exact(piece)?;
                hasher.update(piece);
                memory.write_all_at(piece, extent.offset + done)?;
                done += piece.len() as u64;
            }
        }
        let at_end = stored.read(&mut chunk[..1])? == 0;
        Ok(at_end && hasher.finalize().to_hex().as_str() == self.digest)
    }
}

impl Extent {
    fn head(self, hasher: &mut blake3::Hasher) {
        hasher.update(&self.offset.to_le_bytes()).update(&self.len.to_le_bytes());
    }
}

/// Memory that was copied and has no digest yet: that takes longer, and the machine may go on meanwhile.
#[derive(Debug)]
pub(super) struct Stored {
    size_bytes: u64,
    extents: Vec<Extent>,
}

/// Copies what is not zero in `memory`, which does not change meanwhile.
pub(super) fn store(memory: &File, stored: &mut File) -> io::Result<Stored> {
    let size_bytes = memory.metadata()?.len();
    let mut extents: Vec<Extent> = Vec::new();
    let zeros = vec![0; BLOCK];
    let mut block = vec![0; BLOCK];
    let mut offset = 0;
    while let Some(data) = next_data(memory, offset)? {
        offset = data - data % BLOCK as u64;
        let len = size_bytes.saturating_sub(offset).min(BLOCK as u64);
        let block = &mut block[..usize::try_from(len).unwrap_or(BLOCK)];
        memory.read_exact_at(block, offset)?;
        if *block != zeros[..block.len()] {
            stored.write_all(block)?;
            match extents.last_mut() {
                Some(last) if last.offset + last.len == offset => last.len += len,
                _ => extents.push(Extent { offset, len }),
            }
        }
        offset += len;
    }
    Ok(Stored { size_bytes, extents })
}

impl Stored {
    /// Reads the copy again for its digest.
    pub(super) fn seal(self, mut stored: &File) -> io::Result<Layout> {
        stored.rewind()?;
        let mut hasher = blake3::Hasher::new();
        let mut chunk = vec![0; CHUNK];
        for extent in &self.extents {
            extent.head(&mut hasher);
            let mut left = extent.len;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                stored.read_exact(&mut chunk[..most])?;
                hasher.update(&chunk[..most]);
                left -= most as u64;
            }
        }
        let digest = hasher.finalize().to_hex().to_string();
        Ok(Layout { size_bytes: self.size_bytes, extents: self.extents, digest })
    }
}

/// Where the next page begins that was ever written to, from `offset` on.
fn next_data(memory: &File, offset: u64) -> io::Result<Option<u64>> {
    match seek(memory, SeekFrom::Data(offset)) {
        Ok(data) => Ok(Some(data)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}
