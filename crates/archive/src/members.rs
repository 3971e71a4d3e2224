//! A tar stream as members, read with limits: whatever a stream says, little is kept of it.
//!
//! Read are V7, USTAR, GNU and POSIX.1-2001 headers, holes in GNU's first way and in that of its
//! records 1.0. The `tar` crate decodes headers; what comes after what is decided here.

use std::{
    ffi::OsString,
    io::{self, Read},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::{
    error::{Error, Result},
    write::{Attributes, BLOCK, Extent, Kind, MTIME, Time, XATTR, Xattrs, parse_time},
};

/// Most bytes of extended records for one member: every attribute Linux allows fits.
const RECORDS_MAX: u64 = 1 << 20;

/// Longest name that has a header of its own.
const NAME_MAX: u64 = 64 << 10;

/// Most stretches of data in one file with holes.
pub(crate) const EXTENTS_MAX: usize = 1 << 16;

/// A member without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub path: PathBuf,
    pub kind: Kind,
    pub attributes: Attributes,
}

/// Reads members, one after the other.
#[derive(Debug)]
pub(crate) struct Members<R> {
    input: R,
    offset: u64,
    /// Data of the member that was given last, and the padding behind it.
    data_left: u64,
    padding: u64,
}

/// What came before a header and belongs to it.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Time>,
    xattrs: Xattrs,
    sparse: Sparse,
}

/// Holes as GNU tar's records tell them.
#[derive(Debug, Default)]
struct Sparse {
    major: Option<u64>,
    any: bool,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
}

impl<R: Read> Members<R> {
    pub(crate) const fn new(input: R) -> Self {
        Self { input, offset: 0, data_left: 0, padding: 0 }
    }

    /// The next member, past the data of the one before; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        self.skip(self.data_left + self.padding)?;
        (self.data_left, self.padding) = (0, 0);
        let mut extended = Extended::default();
        loop {
            let mut header = Header::new_old();
            if !self.block(header.as_mut_bytes())? || is_zero(header.as_bytes()) {
                self.rest()?;
                return Ok(None);
            }
            self.check_sum(&header)?;
            let size = header.entry_size().map_err(|_| self.malformed("a length that is none"))?;
            match header.entry_type() {
                EntryType::XHeader => {
                    let records = self.text(size, RECORDS_MAX)?;
                    self.read_records(&records, &mut extended)?;
                }
                // Defaults for all members: nothing that is kept here.
                EntryType::XGlobalHeader => drop(self.text(size, RECORDS_MAX)?),
                EntryType::GNULongName => extended.path = Some(self.name(size)?),
                EntryType::GNULongLink => extended.link = Some(self.name(size)?),
                _ => return self.member(&header, size, extended).map(Some),
            }
        }
    }

    /// Data of the current member as it is in the stream, without holes; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = loop {
            match self.input.read(&mut buffer[..most]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(Error::Read)?,
            }
        };
        if read == 0 {
            return Err(self.malformed("it ends within a file"));
        }
        self.offset += read as u64;
        self.data_left -= read as u64;
        Ok(read)
    }

    fn member(&mut self, header: &Header, size: u64, extended: Extended) -> Result<Member> {
        let size = extended.size.unwrap_or(size);
        let path = extended.sparse.name.clone().or_else(|| extended.path.clone());
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let kind = self.kind(header, size, &extended, &path)?;
        let bad = |what| Error::Malformed { offset: self.offset, what };
        let number = |number: io::Result<u64>, what| {
            number.ok().and_then(|number| u32::try_from(number).ok()).ok_or_else(|| bad(what))
        };
        let seconds = header.mtime().ok().and_then(|seconds| i64::try_from(seconds).ok());
        let attributes = Attributes {
            mode: header.mode().map_err(|_| bad("a mode that is none"))? & 0o7777,
            uid: match extended.uid {
                Some(uid) => uid,
                None => number(header.uid(), "an owner that is none")?,
            },
            gid: match extended.gid {
                Some(gid) => gid,
                None => number(header.gid(), "a group that is none")?,
            },
            modified: extended
                .modified
                .unwrap_or_else(|| Time { seconds: seconds.unwrap_or(0), nanoseconds: 0 }),
            xattrs: extended.xattrs,
        };
        if path.is_empty() || path.contains(&0) {
            return Err(self.malformed("a name that is none"));
        }
        Ok(Member { path: PathBuf::from(OsString::from_vec(path)), kind, attributes })
    }

    /// What a member is; its data comes next in the stream.
    fn kind(
        &mut self,
        header: &Header,
        size: u64,
        extended: &Extended,
        path: &[u8],
    ) -> Result<Kind> {
        let link = || {
            let link = extended.link.clone();
            link.or_else(|| header.link_name_bytes().map(|name| name.into_owned()))
                .filter(|link| !link.is_empty() && !link.contains(&0))
                .ok_or_else(|| self.malformed("a link without a target"))
        };
        let device = || {
            let number = |number: io::Result<Option<u32>>| number.ok().flatten();
            match (number(header.device_major()), number(header.device_minor())) {
                (Some(major), Some(minor)) => Ok((major, minor)),
                _ => Err(self.malformed("a device without a number")),
            }
        };
        Ok(match header.entry_type() {
            // Before there was a type for them, directories were files with this name.
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
            EntryType::Regular | EntryType::Continuous if extended.sparse.any => {
                self.begin_data(size);
                self.sparse_by_records(&extended.sparse)?
            }
            EntryType::Regular | EntryType::Continuous => {
                self.begin_data(size);
                Kind::File { size, extents: None }
            }
            EntryType::GNUSparse => self.sparse_by_header(header, size)?,
            EntryType::Directory => {
                self.begin_data(size);
                Kind::Directory
            }
            EntryType::Symlink => Kind::Symlink(link()?),
            EntryType::Link => {
                let target = link()?;
                // POSIX allows the data to be there again.
                self.begin_data(size);
                Kind::HardLink(target)
            }
            EntryType::Char => device().map(|(major, minor)| Kind::CharDevice(major, minor))?,
            EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
            EntryType::Fifo => Kind::Fifo,
            _ => return Err(self.malformed("a member of a kind that is not read")),
        })
    }

    fn begin_data(&mut self, len: u64) {
        self.data_left = len;
        self.padding = (BLOCK - len % BLOCK) % BLOCK;
    }

    fn sparse_by_header(&mut self, header: &Header, data_len: u64) -> Result<Kind> {
        let bad = "a map of holes that makes no sense";
        let Some(gnu) = header.as_gnu() else { return Err(self.malformed(bad)) };
        let size = gnu.real_size().map_err(|_| self.malformed(bad))?;
        let mut extents = Vec::new();
        let mut add = |places: &[tar::GnuSparseHeader]| {
            for place in places.iter().filter(|place| !place.is_empty()) {
                let (offset, len) = (place.offset().ok()?, place.length().ok()?);
                extents.push(Extent { offset, len });
            }
            (extents.len() <= EXTENTS_MAX).then_some(())
        };
        let mut known = add(&gnu.sparse);
        let mut more = gnu.is_extended();
        while more && known.is_some() {
            let mut block = GnuExtSparseHeader::new();
            if !self.block(block.as_mut_bytes())? {
                return Err(self.malformed("it ends within a map of holes"));
            }
            known = add(block.sparse());
            more = block.is_extended();
        }
        if known.is_none() || !is_map(&extents, size, data_len) {
            return Err(self.malformed(bad));
        }
        self.begin_data(data_len);
        Ok(Kind::File { size, extents: Some(extents) })
    }

    /// The map is text at the beginning of the data: a count, then offset and length of each.
    fn sparse_by_records(&mut self, sparse: &Sparse) -> Result<Kind> {
        let bad = "a map of holes of a kind that is not read";
        let (Some(1), Some(size)) = (sparse.major, sparse.real_size) else {
            return Err(self.malformed(bad));
        };
        let mut map = MapText::default();
        while !map.is_complete() {
            let mut block = [0; 512];
            if self.data_left < BLOCK || !self.block(&mut block)? {
                return Err(self.malformed(bad));
            }
            self.data_left -= BLOCK;
            if !map.push(&block) {
                return Err(self.malformed(bad));
            }
        }
        let extents = map.extents();
        if !is_map(&extents, size, self.data_left) {
            return Err(self.malformed(bad));
        }
        Ok(Kind::File { size, extents: Some(extents) })
    }

    fn read_records(&self, mut records: &[u8], extended: &mut Extended) -> Result<()> {
        let bad = || self.malformed("extended records that make no sense");
        while !records.is_empty() {
            let space = records.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
            let len: usize = number(&records[..space]).ok_or_else(bad)?;
            let record = records.get(space + 1..len).ok_or_else(bad)?;
            let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
            extended.take(&record[..equals], &record[equals + 1..]).ok_or_else(bad)?;
            records = &records[len..];
        }
        Ok(())
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut name = self.text(size, NAME_MAX)?;
        name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
        Ok(name)
    }

    /// Data of a member that belongs to the next one.
    fn text(&mut self, size: u64, most: u64) -> Result<Vec<u8>> {
        if size > most {
            return Err(self.malformed("a name or record beyond all measure"));
        }
        let padded = usize::try_from(size.next_multiple_of(BLOCK)).expect("at most 1 MiB");
        let mut text = vec![0; padded];
        if !self.block(&mut text)? && size > 0 {
            return Err(self.malformed("it ends within a record"));
        }
        text.truncate(usize::try_from(size).expect("at most 1 MiB"));
        Ok(text)
    }

    /// Fills `block`; false at the end of the stream.
    fn block(&mut self, block: &mut [u8]) -> Result<bool> {
        let mut filled = 0;
        while filled < block.len() {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(self.malformed("it ends within a block")),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Read(error)),
            }
        }
        self.offset += filled as u64;
        Ok(true)
    }

    fn skip(&mut self, len: u64) -> Result<()> {
        let skipped = io::copy(&mut (&mut self.input).take(len), &mut io::sink());
        let skipped = skipped.map_err(Error::Read)?;
        self.offset += skipped;
        if skipped < len {
            return Err(self.malformed("it ends within a file"));
        }
        Ok(())
    }

    /// Reads what writers put after the end, so that they need not notice that nobody wants it.
    fn rest(&mut self) -> Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(drop).map_err(Error::Read)
    }

    fn check_sum(&self, header: &Header) -> Result<()> {
        let bytes = header.as_bytes().iter().enumerate();
        // The sum is made with blanks in its own place.
        let sum =
            bytes.map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) });
        match header.cksum() {
            Ok(expected) if expected == sum.sum::<u32>() => Ok(()),
            _ => Err(self.malformed("no tar header")),
        }
    }

    const fn malformed(&self, what: &'static str) -> Error {
        Error::Malformed { offset: self.offset, what }
    }
}

impl Extended {
    /// Takes a record; `None` when its value makes no sense.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        if let Some(name) = key.strip_prefix(XATTR) {
            self.xattrs.push((name.to_vec(), value.to_vec()));
            return Some(());
        }
        let sparse = &mut self.sparse;
        sparse.any |= key.starts_with(b"GNU.sparse.");
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            MTIME => self.modified = Some(parse_time(value)?),
            b"GNU.sparse.major" => sparse.major = Some(number(value)?),
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.realsize" => sparse.real_size = Some(number(value)?),
            // Comments, other times, names of owners: nothing that is kept here.
            _ => {}
        }
        Some(())
    }
}

/// A map of holes as text, as far as it has come.
#[derive(Debug, Default)]
struct MapText {
    numbers: Vec<u64>,
    digits: Vec<u8>,
}

impl MapText {
    fn is_complete(&self) -> bool {
        self.numbers
            .first()
            .is_some_and(|count| self.numbers.len() as u64 > count.saturating_mul(2))
    }

    /// Takes a block; what follows the last number in it is padding.
    fn push(&mut self, block: &[u8]) -> bool {
        for byte in block {
            if self.is_complete() {
                return true;
            }
            match byte {
                b'\n' => match number(&self.digits) {
                    Some(next) => {
                        self.numbers.push(next);
                        self.digits.clear();
                    }
                    None => return false,
                },
                b'0'..=b'9' if self.digits.len() < 20 => self.digits.push(*byte),
                _ => return false,
            }
        }
        self.numbers.first().is_none_or(|count| *count <= EXTENTS_MAX as u64)
    }

    fn extents(&self) -> Vec<Extent> {
        let pairs = self.numbers.get(1..).unwrap_or_default().chunks_exact(2);
        pairs.map(|pair| Extent { offset: pair[0], len: pair[1] }).collect()
    }
}

/// Whether stretches lie in order within a file of `size`, and hold `data_len` bytes together.
fn is_map(extents: &[Extent], size: u64, data_len: u64) -> bool {
    let (mut end, mut data) = (0_u64, 0_u64);
    for Extent { offset, len } in extents {
        let Some(next) = offset.checked_add(*len) else { return false };
        if *offset < end || next > size {
            return false;
        }
        (end, data) = (next, data + len);
    }
    data == data_len
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    str::from_utf8(digits).ok()?.parse().ok()
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}
