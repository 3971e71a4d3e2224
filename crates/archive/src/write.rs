//! Members as bytes of a tar stream: one header each, and records for what a header cannot hold.
//!
//! Format: GNU headers with extended records of POSIX.1-2001 (`pax(1)`) in front, as GNU tar, BSD tar
//! and Go read them. Holes are told in GNU's first way (`GNU tar manual, D.2.1`), which all of them
//! know and which needs no pass over the file's map of holes before its header.

use std::{
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use tar::{EntryType, GnuExtSparseHeader, Header};

use crate::error::{Error, Result};

/// Bytes of a block: headers are one, data is padded to a multiple.
pub(crate) const BLOCK: u64 = 512;

/// Extended record with a time below the second, or before 1970.
pub(crate) const MTIME: &[u8] = b"mtime";

/// What records of extended attributes begin with, as GNU tar and libarchive write them.
pub(crate) const XATTR: &[u8] = b"SCHILY.xattr.";

/// A stretch of data within a file with holes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub offset: u64,
    pub len: u64,
}

/// Names and values of extended attributes.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Everything about a member but its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Time,
    pub xattrs: Xattrs,
}

/// Time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A file of this length; with holes: only these stretches have data, in order.
    File {
        size: u64,
        extents: Option<Vec<Extent>>,
    },
    Directory,
    Symlink(Vec<u8>),
    /// Another name of a member that came before.
    HardLink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Writes members.
#[derive(Debug)]
pub(crate) struct MemberWriter<W> {
    output: W,
}

impl<W: Write> MemberWriter<W> {
    pub(crate) const fn new(output: W) -> Self {
        Self { output }
    }

    /// Writes what comes before the data of a member.
    pub(crate) fn begin(
        &mut self,
        path: &Path,
        kind: &Kind,
        attributes: &Attributes,
    ) -> Result<()> {
        let mut header = Header::new_gnu();
        let mut records = Records::default();
        let mut name = path.as_os_str().as_bytes().to_vec();
        if *kind == Kind::Directory && !name.ends_with(b"/") {
            name.push(b'/');
        }
        let old = header.as_old_mut();
        records.place(&mut old.name, b"path", &name);
        if let Kind::Symlink(target) | Kind::HardLink(target) = kind {
            records.place(&mut old.linkname, b"linkpath", target);
        }
        header.set_mode(attributes.mode & 0o7777);
        header.set_uid(attributes.uid.into());
        header.set_gid(attributes.gid.into());
        let Time { seconds, nanoseconds } = attributes.modified;
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if nanoseconds != 0 || seconds < 0 {
            records.add(MTIME, decimal_time(attributes.modified).as_bytes());
        }
        for (name, value) in &attributes.xattrs {
            records.add(&[XATTR, name].concat(), value);
        }
        set_kind(&mut header, kind).map_err(Error::Write)?;
        header.set_cksum();
        self.records(&records.bytes, attributes)?;
        self.bytes(header.as_bytes())?;
        match kind {
            Kind::File { extents: Some(extents), .. } => self.more_extents(extents),
            _ => Ok(()),
        }
    }

    /// Writes data of the member that has begun.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.output.write_all(bytes).map_err(Error::Write)
    }

    /// Pads what has been written of a member's data to whole blocks.
    pub(crate) fn end(&mut self, data_len: u64) -> Result<()> {
        let padding = data_len.next_multiple_of(BLOCK) - data_len;
        self.bytes(&[0; 512][..usize::try_from(padding).expect("less than a block")])
    }

    /// Ends the stream.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.bytes(&[0; 1024])?;
        self.output.flush().map_err(Error::Write)
    }

    fn records(&mut self, records: &[u8], attributes: &Attributes) -> Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut header = Header::new_gnu();
        let name = b"././@PaxHeader";
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(attributes.mode & 0o7777);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(records.len() as u64);
        header.set_cksum();
        self.bytes(header.as_bytes())?;
        self.bytes(records)?;
        self.end(records.len() as u64)
    }

    /// The stretches that have no place in the header.
    fn more_extents(&mut self, extents: &[Extent]) -> Result<()> {
        let rest = extents.get(IN_HEADER..).unwrap_or_default();
        let mut blocks = rest.chunks(IN_BLOCK).peekable();
        while let Some(block) = blocks.next() {
            let mut header = GnuExtSparseHeader::new();
            for (extent, place) in block.iter().zip(&mut header.sparse) {
                place.set_offset(extent.offset);
                place.set_length(extent.len);
            }
            header.set_is_extended(blocks.peek().is_some());
            self.bytes(header.as_bytes())?;
        }
        Ok(())
    }
}

/// Stretches a header has room for, and each block after it.
const IN_HEADER: usize = 4;
const IN_BLOCK: usize = 21;

fn set_kind(header: &mut Header, kind: &Kind) -> io::Result<()> {
    let (entry_type, size) = match kind {
        Kind::File { size, extents: None } => (EntryType::Regular, *size),
        Kind::File { extents: Some(extents), .. } => {
            (EntryType::GNUSparse, extents.iter().map(|extent| extent.len).sum())
        }
        Kind::Directory => (EntryType::Directory, 0),
        Kind::Symlink(_) => (EntryType::Symlink, 0),
        Kind::HardLink(_) => (EntryType::Link, 0),
        Kind::CharDevice(..) => (EntryType::Char, 0),
        Kind::BlockDevice(..) => (EntryType::Block, 0),
        Kind::Fifo => (EntryType::Fifo, 0),
    };
    header.set_entry_type(entry_type);
    header.set_size(size);
    match kind {
        Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            header.set_device_major(*major)?;
            header.set_device_minor(*minor)?;
        }
        Kind::File { size, extents: Some(extents) } => {
            let gnu = header.as_gnu_mut().expect("it was made as one");
            gnu.set_real_size(*size);
            for (extent, place) in extents.iter().zip(&mut gnu.sparse) {
                place.set_offset(extent.offset);
                place.set_length(extent.len);
            }
            gnu.set_is_extended(extents.len() > IN_HEADER);
        }
        _ => {}
    }
    Ok(())
}

/// Extended records of one member.
#[derive(Debug, Default)]
struct Records {
    bytes: Vec<u8>,
}

impl Records {
    /// Puts `value` where a header has room for it, else into a record.
    fn place(&mut self, field: &mut [u8], key: &[u8], value: &[u8]) {
        match field.get_mut(..value.len()) {
            Some(field) => field.copy_from_slice(value),
            None => self.add(key, value),
        }
    }

    /// `len key=value\n`, where `len` counts itself.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        self.bytes.extend_from_slice(len.to_string().as_bytes());
        self.bytes.push(b' ');
        self.bytes.extend_from_slice(key);
        self.bytes.push(b'=');
        self.bytes.extend_from_slice(value);
        self.bytes.push(b'\n');
    }
}

/// Seconds with a fraction, as `pax(1)` writes them.
fn decimal_time(time: Time) -> String {
    let Time { seconds, nanoseconds } = time;
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    // -1 s and 0.25 s are -0.75 s.
    let whole = (seconds + 1).unsigned_abs();
    format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
}

/// Reads what [`decimal_time`] writes.
pub(crate) fn parse_time(text: &[u8]) -> Option<Time> {
    let text = str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole: i64 = whole.parse().ok().filter(|whole| *whole >= 0)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let fraction: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = fraction.parse().ok()?;
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds: whole, nanoseconds },
        (true, 0) => Time { seconds: -whole, nanoseconds: 0 },
        (true, _) => Time { seconds: -whole - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds_on_both_sides_of_1970() {
        for (seconds, nanoseconds, text) in [
            (0, 0, "0.000000000"),
            (5, 1, "5.000000001"),
            (-1, 250_000_000, "-0.750000000"),
            (-2, 0, "-2.000000000"),
            (-3, 999_999_999, "-2.000000001"),
        ] {
            let time = Time { seconds, nanoseconds };
            assert_eq!(decimal_time(time), text);
            assert_eq!(parse_time(text.as_bytes()), Some(time), "{text}");
        }
        assert_eq!(parse_time(b"7"), Some(Time { seconds: 7, nanoseconds: 0 }));
        for text in ["", "-", "x", "1.x", "--1", "1.2.3", "99999999999999999999"] {
            assert_eq!(parse_time(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_record_counts_its_own_length() {
        let mut records = Records::default();
        records.add(b"mtime", b"1.5");
        records.add(b"path", &[b'x'; 92]);
        assert!(records.bytes.starts_with(b"13 mtime=1.5\n102 path=xx"), "{:?}", records.bytes);
    }
}
