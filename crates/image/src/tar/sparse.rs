//! Sparse files: where the stored bytes of a file with holes belong.

use std::io::BufRead;

use super::header::{Block, number};
use super::pax::decimal;
use super::{Entry, Reader};
use crate::error::LayerError;

/// Most pieces a sparse file may be stored in; more would be a map larger than most files.
const MAX_SEGMENTS: usize = 1 << 20;

/// A run of stored bytes and its place in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

impl Segment {
    pub(super) fn from_pairs(pairs: &[u64]) -> Vec<Self> {
        pairs.chunks_exact(2).map(|pair| Self { offset: pair[0], len: pair[1] }).collect()
    }
}

/// A sparse file as PAX records describe it; without segments the map stands before the data.
pub(super) struct Described {
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: u64,
    pub(super) segments: Option<Vec<Segment>>,
}

/// The map of the old GNU format: four pieces in the header, 21 in each continuation block.
pub(super) struct GnuMap {
    segments: Vec<Segment>,
    size: u64,
    continues: bool,
}

impl GnuMap {
    pub(super) fn from_header(block: &Block) -> Result<Self, &'static str> {
        let size = number(&block[483..495])?.try_into().map_err(|_| "the size is negative")?;
        let mut map = Self { segments: Vec::new(), size, continues: block[482] != 0 };
        map.add(&block[386..482])?;
        Ok(map)
    }

    pub(super) fn continues(&self) -> bool {
        self.continues
    }

    pub(super) fn extend(&mut self, block: &Block) -> Result<(), &'static str> {
        self.continues = block[504] != 0;
        self.add(&block[..504])
    }

    pub(super) fn finish(self, stored: u64) -> Result<(u64, Option<Vec<Segment>>), &'static str> {
        check(&self.segments, self.size, stored)?;
        Ok((self.size, Some(self.segments)))
    }

    fn add(&mut self, table: &[u8]) -> Result<(), &'static str> {
        for pair in table.chunks_exact(24) {
            if pair[0] == 0 {
                break;
            }
            let field = |bytes| -> Result<u64, &'static str> {
                number(bytes)?.try_into().map_err(|_| "a sparse map is negative")
            };
            self.segments.push(Segment { offset: field(&pair[..12])?, len: field(&pair[12..])? });
        }
        if self.segments.len() > MAX_SEGMENTS {
            return Err("a sparse map is absurdly long");
        }
        Ok(())
    }
}

/// Segments ascend, do not overlap, lie within the file, and account for every stored byte.
pub(super) fn check(segments: &[Segment], size: u64, stored: u64) -> Result<(), &'static str> {
    const FAULT: &str = "a sparse map does not fit its file";
    if segments.len() > MAX_SEGMENTS {
        return Err("a sparse map is absurdly long");
    }
    let mut end = 0_u64;
    let mut total = 0_u64;
    for segment in segments {
        if segment.offset < end {
            return Err(FAULT);
        }
        end = segment.offset.checked_add(segment.len).ok_or(FAULT)?;
        total += segment.len;
    }
    if end > size || total != stored {
        return Err(FAULT);
    }
    Ok(())
}

/// PAX format 1.0: decimal lines (count, then offset and length of each piece) padded to a block.
pub(super) fn read_map_before_data<R: BufRead>(
    reader: &mut Reader<R>,
    entry: &Entry,
) -> Result<Vec<Segment>, LayerError> {
    let at = reader.offset;
    let fault = || LayerError::Header { offset: at, reason: "a PAX sparse map is malformed" };
    let mut text = Vec::new();
    let mut next = |reader: &mut Reader<R>| -> Result<u64, LayerError> {
        loop {
            if let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let value = decimal(&text[..end]).ok_or_else(fault)?;
                text.drain(..=end);
                return Ok(value);
            }
            if text.len() > 512 || reader.pending < 512 {
                return Err(fault());
            }
            let block = reader.block()?.ok_or_else(fault)?;
            reader.pending -= 512;
            text.extend_from_slice(&block);
        }
    };
    let count = usize::try_from(next(reader)?).map_err(|_| fault())?;
    // Each piece takes at least four bytes of the entry, so a lying count cannot make a large allocation.
    if count > MAX_SEGMENTS || count as u64 > entry.stored / 4 {
        return Err(fault());
    }
    let mut segments = Vec::with_capacity(count);
    for _ in 0..count {
        segments.push(Segment { offset: next(reader)?, len: next(reader)? });
    }
    Ok(segments)
}
