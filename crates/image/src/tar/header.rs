//! One 512-byte tar header: fixed fields, decoded and checked.

use crate::tree::{Attributes, Device, Timestamp};

/// Size of a header and the unit that data is padded to.
pub(super) const BLOCK: u64 = 512;

/// A header as it lies in the stream.
pub(super) type Block = [u8; 512];

/// What an entry is, or what a header that describes the next entry carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice(Device),
    BlockDevice(Device),
    Directory,
    Fifo,
    GnuSparse,
    GnuLongName,
    GnuLongLink,
    PaxLocal,
    PaxGlobal,
    VolumeLabel,
}

impl EntryKind {
    pub(super) fn has_data(self) -> bool {
        matches!(self, Self::File | Self::GnuSparse)
    }
}

/// The fixed fields of a header.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) attributes: Attributes,
    pub(super) size: u64,
    pub(super) link: Vec<u8>,
}

impl Header {
    /// Decodes `block`, or says what is wrong with it.
    pub(super) fn parse(block: &Block) -> Result<Self, &'static str> {
        if !has_valid_checksum(block) {
            return Err("the checksum is wrong: this is no tar header");
        }
        let mut name = text(&block[0..100]).to_vec();
        // The magic tells ustar (`ustar\0`) from old GNU (`ustar  \0`), whose header has no prefix.
        if &block[257..263] == b"ustar\0" {
            let prefix = text(&block[345..500]);
            if !prefix.is_empty() {
                name = [prefix, b"/", &name].concat();
            }
        }
        let device = || -> Result<Device, &'static str> {
            Ok(Device {
                major: number(&block[329..337])?.try_into().map_err(|_| "the device is absurd")?,
                minor: number(&block[337..345])?.try_into().map_err(|_| "the device is absurd")?,
            })
        };
        let kind = match block[156] {
            b'0' | b'7' | 0 => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice(device()?),
            b'4' => EntryKind::BlockDevice(device()?),
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            b'S' => EntryKind::GnuSparse,
            b'L' => EntryKind::GnuLongName,
            b'K' => EntryKind::GnuLongLink,
            b'x' => EntryKind::PaxLocal,
            b'g' => EntryKind::PaxGlobal,
            b'V' => EntryKind::VolumeLabel,
            _ => return Err("the entry type is unknown"),
        };
        let permissions = number(&block[100..108])? & 0o7777;
        let attributes = Attributes {
            permissions: u16::try_from(permissions).map_err(|_| "the mode is absurd")?,
            uid: number(&block[108..116])?.try_into().map_err(|_| "the owner is absurd")?,
            gid: number(&block[116..124])?.try_into().map_err(|_| "the group is absurd")?,
            modified: Timestamp::from_seconds(number(&block[136..148])?),
        };
        let size = number(&block[124..136])?.try_into().map_err(|_| "the size is negative")?;
        Ok(Self { name, kind, attributes, size, link: text(&block[157..257]).to_vec() })
    }
}

/// The bytes before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number: octal digits with blanks around them, or base-256 when the top bit of the field is set (GNU).
pub(super) fn number(field: &[u8]) -> Result<i64, &'static str> {
    let fault = "a number is neither octal nor base-256";
    if field[0] & 0x80 != 0 {
        // Two's complement, big-endian; the marker bit stands in the sign's place, the next bit is the sign.
        let negative = field[0] & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = match (index, negative) {
                (0, true) => *byte | 0x80,
                (0, false) => *byte & 0x7f,
                _ => *byte,
            };
            value =
                value.checked_mul(256).ok_or(fault)?.checked_add(i64::from(byte)).ok_or(fault)?;
        }
        return Ok(value);
    }
    let digits = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ' || *byte == 0)
        .take_while(|byte| !matches!(byte, b' ' | 0));
    let mut value: i64 = 0;
    for digit in digits {
        if !matches!(digit, b'0'..=b'7') {
            return Err(fault);
        }
        value = value.checked_mul(8).ok_or(fault)? + i64::from(digit - b'0');
    }
    Ok(value)
}

/// Sum of all bytes with the checksum field read as blanks; old writers summed signed bytes.
fn has_valid_checksum(block: &Block) -> bool {
    let Ok(expected) = number(&block[148..156]) else { return false };
    let bytes = || {
        block.iter().enumerate().map(|(index, byte)| match index {
            148..156 => b' ',
            _ => *byte,
        })
    };
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
    expected == unsigned || expected == signed
}
