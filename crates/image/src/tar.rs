//! Tar: a stream of entries, as image layers and archives carry them.
//!
//! Understands v7, ustar, GNU (long names, base-256 numbers, sparse files) and PAX (names, sizes, owners,
//! times with fractions, extended attributes, sparse files). Bytes in, values out: it never touches a file,
//! decides nothing about names, and keeps no more of the stream than the headers of one entry.

mod header;
mod pax;
mod sparse;

use std::io::{self, BufRead, Read};

pub(crate) use self::header::EntryKind;
use self::header::{BLOCK, Block, Header};
use self::pax::Records;
pub(crate) use self::sparse::Segment;
use crate::error::LayerError;
use crate::tree::{Attributes, Xattr};

/// Largest header that describes another (PAX records, a GNU long name); Go's reader has the same limit.
const MAX_EXTENSION_BYTES: u64 = 1 << 20;

/// Everything a tar stream says about one file, its bytes excepted.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Name as written: not normalised, not checked, not necessarily UTF-8.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryKind,
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: Vec<Xattr>,
    /// Target of a symbolic or hard link.
    pub(crate) link: Vec<u8>,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    /// Where the bytes of a sparse file lie, ascending; `None` for an ordinary file.
    pub(crate) segments: Option<Vec<Segment>>,
    /// Bytes of the stream that hold this file's data.
    stored: u64,
}

/// What the headers before an entry's own say about it.
#[derive(Default)]
struct Described {
    records: Records,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Described {
    fn is_empty(&self) -> bool {
        self.name.is_none() && self.link.is_none() && self.records.is_empty()
    }
}

/// Reads entries one after the other; what is left of an entry's data is skipped by the next call.
pub(crate) struct Reader<R> {
    input: R,
    /// Data and padding of the current entry that nobody read yet.
    pending: u64,
    padding: u64,
    global: Records,
    /// Offset of the next header, for error messages.
    offset: u64,
    entries: u64,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self { input, pending: 0, padding: 0, global: Records::default(), offset: 0, entries: 0 }
    }

    /// The next entry, or `None` at the end-of-archive marker or the end of the stream.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, LayerError> {
        self.skip(self.pending + self.padding)?;
        (self.pending, self.padding) = (0, 0);
        let mut described = Described::default();
        loop {
            let Some(block) = self.block()? else {
                return match described.is_empty() {
                    true => Ok(None),
                    // The entry that was described is missing.
                    false => Err(LayerError::Truncated { offset: self.offset }),
                };
            };
            let header = Header::parse(&block)
                .map_err(|reason| LayerError::Header { offset: self.offset - BLOCK, reason })?;
            let taken = match header.kind {
                EntryKind::PaxLocal => described.records.extend(&self.extension(&header)?),
                EntryKind::PaxGlobal => {
                    let records = self.extension(&header)?;
                    self.global.extend(&records)
                }
                EntryKind::GnuLongName => {
                    described.name = Some(until_nul(self.extension(&header)?));
                    Ok(())
                }
                EntryKind::GnuLongLink => {
                    described.link = Some(until_nul(self.extension(&header)?));
                    Ok(())
                }
                EntryKind::VolumeLabel => self.extension(&header).map(|_| Ok(()))?,
                _ => {
                    self.entries += 1;
                    return self.entry(&block, header, described).map(Some);
                }
            };
            taken.map_err(|reason| LayerError::Header { offset: self.offset, reason })?;
        }
    }

    /// Number of entries so far.
    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Hands the stored bytes of the current entry to `take`, piece by piece, without copying them.
    pub(crate) fn copy_stored(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        while self.pending > 0 {
            let chunk = self.input.fill_buf().map_err(read_fault)?;
            if chunk.is_empty() {
                return Err(LayerError::Truncated { offset: self.offset });
            }
            let len = chunk.len().min(usize::try_from(self.pending).unwrap_or(usize::MAX));
            take(&chunk[..len])?;
            self.input.consume(len);
            self.pending -= len as u64;
            self.offset += len as u64;
        }
        Ok(())
    }

    /// Reads the whole of the current entry, which must not be larger than `limit` bytes.
    pub(crate) fn read_small(&mut self, entry: &Entry, limit: u64) -> Result<Vec<u8>, LayerError> {
        if entry.stored > limit {
            return Err(LayerError::EntryTooLarge {
                entry: entry.display_name(),
                size: entry.stored,
                limit,
            });
        }
        let mut bytes = Vec::new();
        self.copy_stored(|chunk| {
            bytes.extend_from_slice(chunk);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// The first byte of the current entry's data that nobody has read.
    pub(crate) fn peek(&mut self) -> Result<Option<u8>, LayerError> {
        if self.pending == 0 {
            return Ok(None);
        }
        Ok(self.input.fill_buf().map_err(read_fault)?.first().copied())
    }

    /// Where in the stream the next unread byte lies.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the rest of the current entry for read; the caller moves the input on by as many bytes.
    pub(crate) fn pass_over_data(&mut self) -> u64 {
        let count = self.pending + self.padding;
        (self.pending, self.padding) = (0, 0);
        self.offset += count;
        count
    }

    pub(crate) fn input_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The current entry's data as a reader, for archives whose entries are streams themselves.
    pub(crate) fn data(&mut self) -> Data<'_, R> {
        Data { reader: self }
    }

    /// The stream behind the archive, to read what follows the end marker.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn entry(
        &mut self,
        block: &Block,
        header: Header,
        described: Described,
    ) -> Result<Entry, LayerError> {
        let at = self.offset - BLOCK;
        let fault = |reason| LayerError::Header { offset: at, reason };
        let mut entry = Entry {
            name: described.name.unwrap_or(header.name),
            kind: header.kind,
            attributes: header.attributes,
            xattrs: Vec::new(),
            link: described.link.unwrap_or(header.link),
            size: header.size,
            segments: None,
            stored: header.size,
        };
        self.global.apply(&mut entry).map_err(fault)?;
        described.records.apply(&mut entry).map_err(fault)?;
        if entry.kind == EntryKind::File && entry.name.ends_with(b"/") {
            // Archives older than the directory type mark directories by a trailing slash.
            entry.kind = EntryKind::Directory;
        }
        if !entry.kind.has_data() {
            // Some writers put the target's size into link headers; no data follows (Go's reader agrees).
            (entry.size, entry.stored) = (0, 0);
        }
        self.pending = entry.stored;
        self.padding = entry.stored.next_multiple_of(BLOCK) - entry.stored;
        self.sparse(block, &mut entry, &described.records)?;
        Ok(entry)
    }

    /// Finds the map of a sparse file: in the header (GNU), in the records or before the data (PAX).
    fn sparse(
        &mut self,
        block: &Block,
        entry: &mut Entry,
        local: &Records,
    ) -> Result<(), LayerError> {
        let at = self.offset - BLOCK;
        let fault = |reason| LayerError::Header { offset: at, reason };
        if entry.kind == EntryKind::GnuSparse {
            let mut map = sparse::GnuMap::from_header(block).map_err(fault)?;
            while map.continues() {
                let Some(more) = self.block()? else {
                    return Err(LayerError::Truncated { offset: self.offset });
                };
                map.extend(&more).map_err(fault)?;
            }
            (entry.size, entry.segments) = map.finish(entry.stored).map_err(fault)?;
            entry.kind = EntryKind::File;
        } else if let Some(described) = local.sparse() {
            let described = described.map_err(fault)?;
            if let Some(name) = described.name {
                entry.name = name;
            }
            let segments = match described.segments {
                Some(segments) => segments,
                None => sparse::read_map_before_data(self, entry)?,
            };
            sparse::check(&segments, described.size, self.pending).map_err(fault)?;
            (entry.size, entry.segments) = (described.size, Some(segments));
        }
        Ok(())
    }

    /// The data of a header that describes the next one.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        if header.size > MAX_EXTENSION_BYTES {
            return Err(LayerError::Header {
                offset: self.offset - BLOCK,
                reason: "an extension header is larger than 1 MiB",
            });
        }
        let padded = header.size.next_multiple_of(BLOCK);
        let mut bytes = Vec::new();
        let got =
            (&mut self.input).take(padded).read_to_end(&mut bytes).map_err(read_fault)? as u64;
        if got < padded {
            return Err(LayerError::Truncated { offset: self.offset + got });
        }
        self.offset += padded;
        bytes.truncate(usize::try_from(header.size).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// One 512-byte block, `None` at the end: a block of zeros, or the stream stopping between entries.
    fn block(&mut self) -> Result<Option<Block>, LayerError> {
        let mut block: Block = [0; 512];
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(LayerError::Truncated { offset: self.offset + filled as u64 }),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_fault(error)),
            }
        }
        self.offset += BLOCK;
        Ok((block != [0; 512]).then_some(block))
    }

    fn skip(&mut self, mut count: u64) -> Result<(), LayerError> {
        while count > 0 {
            let available = self.input.fill_buf().map_err(read_fault)?.len();
            if available == 0 {
                return Err(LayerError::Truncated { offset: self.offset });
            }
            let step = available.min(usize::try_from(count).unwrap_or(usize::MAX));
            self.input.consume(step);
            count -= step as u64;
            self.offset += step as u64;
        }
        Ok(())
    }
}

/// The stored bytes of one entry.
pub(crate) struct Data<'a, R> {
    reader: &'a mut Reader<R>,
}

impl<R: BufRead> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.reader.pending == 0 {
            return Ok(0);
        }
        let limit = usize::try_from(self.reader.pending).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.reader.input.read(&mut buffer[..limit])?;
        if count == 0 && limit > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.reader.pending -= count as u64;
        self.reader.offset += count as u64;
        Ok(count)
    }
}

impl Entry {
    /// The name for messages: printable, whatever bytes it is made of.
    pub(crate) fn display_name(&self) -> String {
        display_name(&self.name)
    }
}

/// `name` for messages: non-UTF-8 and control characters escaped.
pub(crate) fn display_name(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .flat_map(|c| {
            let escape = c.is_control();
            c.escape_default().filter(move |_| escape).chain((!escape).then_some(c))
        })
        .collect()
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// An input that ends inside the compressed stream is truncated too; everything else is the reader's fault.
fn read_fault(source: io::Error) -> LayerError {
    LayerError::Read { source }
}

#[cfg(test)]
mod tests;
