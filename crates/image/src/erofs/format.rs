//! Fixed-size structures of EROFS: superblock and extended inode. Integers are little-endian.

use crate::tree::{Attributes, Device};

/// Room at the start of every image: the superblock lies at 1024, and 4 KiB is a whole block at any block size.
pub(crate) const HEAD_BYTES: u64 = 4096;

/// Every part of a disk is padded to this, so that parts join at block boundaries at any block size.
pub(crate) const PART_ALIGN: u64 = 4096;

const MAGIC: u32 = 0xE0F5_E1E2;
const SUPERBLOCK_OFFSET: usize = 1024;
const SUPERBLOCK_BYTES: usize = 128;
const CHECKSUM_OFFSET: usize = SUPERBLOCK_OFFSET + 4;

/// Compatible features: the superblock has a checksum; inode times are modification times.
const FEATURES: u32 = 0x1 | 0x2;

/// Inode numbers count units of this many bytes from the start of the inode table.
pub(super) const INODE_UNIT: u64 = 32;

/// Size of an extended inode, the only kind written: the compact one has no time and 16-bit owners.
pub(super) const INODE_BYTES: u64 = 64;

/// Unit in which an image addresses its bytes.
///
/// 512 loses no space to padding and is the default; Linux reads it since 6.4. Some tools judge 4096 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockSize {
    /// 512 bytes.
    #[default]
    B512,
    /// 4096 bytes.
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        1 << self.bits()
    }

    pub(super) fn bits(self) -> u8 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// Blocks that `bytes` take up.
    pub(crate) fn blocks(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }
}

/// What the superblock says about an image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Superblock {
    pub(crate) block_size: BlockSize,
    /// Blocks of the whole image, all parts together.
    pub(crate) blocks: u32,
    pub(crate) inodes: u64,
    /// First block of the inode table.
    pub(crate) meta_block: u32,
    /// The root's number; must be below 65536.
    pub(crate) root_nid: u16,
    pub(crate) uuid: [u8; 16],
}

impl Superblock {
    /// The first [`HEAD_BYTES`] of an image.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut head = vec![0; 4096];
        let mut fields = Vec::with_capacity(SUPERBLOCK_BYTES);
        fields.extend(MAGIC.to_le_bytes());
        fields.extend([0; 4]); // checksum, filled below
        fields.extend(FEATURES.to_le_bytes());
        fields.extend([self.block_size.bits(), 0]); // no superblock extension slots
        fields.extend(self.root_nid.to_le_bytes());
        fields.extend(self.inodes.to_le_bytes());
        fields.extend([0; 12]); // build time: images of the same content are the same bytes
        fields.extend(self.blocks.to_le_bytes());
        fields.extend(self.meta_block.to_le_bytes());
        fields.extend([0; 4]); // no shared attributes
        fields.extend(self.uuid);
        fields.resize(SUPERBLOCK_BYTES, 0); // no volume name, incompatible features or devices
        head[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + SUPERBLOCK_BYTES].copy_from_slice(&fields);
        let checksum = checksum(&head, self.block_size);
        head[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].copy_from_slice(&checksum.to_le_bytes());
        head
    }

    /// Reads what [`Self::encode`] wrote; `None` for anything else.
    pub(crate) fn decode(head: &[u8]) -> Option<Self> {
        let field = |offset: usize| {
            let at = SUPERBLOCK_OFFSET + offset;
            head.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes)
        };
        let block_size = match head.get(SUPERBLOCK_OFFSET + 12)? {
            9 => BlockSize::B512,
            12 => BlockSize::B4096,
            _ => return None,
        };
        let mut unsummed = head.get(..4096)?.to_vec();
        unsummed[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 4].fill(0);
        if field(0)? != MAGIC || field(4)? != checksum(&unsummed, block_size) {
            return None;
        }
        let inodes = u64::from(field(16)?) | u64::from(field(20)?) << 32;
        let uuid = head.get(SUPERBLOCK_OFFSET + 48..SUPERBLOCK_OFFSET + 64)?.try_into().ok()?;
        let [low, high] = [head[SUPERBLOCK_OFFSET + 14], head[SUPERBLOCK_OFFSET + 15]];
        Some(Self {
            block_size,
            blocks: field(36)?,
            inodes,
            meta_block: field(40)?,
            root_nid: u16::from_le_bytes([low, high]),
            uuid,
        })
    }
}

/// CRC-32C from the superblock to the end of its block, seeded with all ones and not inverted at the end.
fn checksum(head: &[u8], block_size: BlockSize) -> u32 {
    let covered = match block_size {
        // The superblock's own 512-byte block.
        BlockSize::B512 => &head[SUPERBLOCK_OFFSET..SUPERBLOCK_OFFSET + 512],
        BlockSize::B4096 => &head[SUPERBLOCK_OFFSET..4096],
    };
    // `crc32c` inverts its result, as network protocols do; EROFS stores the register itself.
    !crc32c::crc32c(covered)
}

/// File type bits of `st_mode`.
pub(super) mod mode {
    pub(in crate::erofs) const FIFO: u16 = 0o010_000;
    pub(in crate::erofs) const CHAR: u16 = 0o020_000;
    pub(in crate::erofs) const DIRECTORY: u16 = 0o040_000;
    pub(in crate::erofs) const BLOCK: u16 = 0o060_000;
    pub(in crate::erofs) const FILE: u16 = 0o100_000;
    pub(in crate::erofs) const SYMLINK: u16 = 0o120_000;
    pub(in crate::erofs) const SOCKET: u16 = 0o140_000;
}

/// How an inode's content is found.
#[derive(Debug, Clone, Copy)]
pub(super) enum Content {
    /// In whole blocks from this one on.
    Blocks(u32),
    /// Right behind the inode, within its block.
    Inline,
    /// There is none, but a device number.
    Device(Device),
}

/// An extended inode.
#[derive(Debug)]
pub(super) struct ExtendedInode {
    pub(super) attributes: Attributes,
    pub(super) file_type: u16,
    pub(super) size: u64,
    pub(super) links: u32,
    /// `i_xattr_icount`: 0, or the attribute area in units of four bytes less the two of its header.
    pub(super) xattr_count: u16,
    pub(super) content: Content,
    /// Number that 32-bit `stat` callers see.
    pub(super) ino: u32,
}

impl ExtendedInode {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        const EXTENDED: u16 = 1;
        const FLAT_INLINE: u16 = 2 << 1;
        let (layout, union) = match self.content {
            Content::Blocks(block) => (0, block),
            Content::Inline => (FLAT_INLINE, 0),
            Content::Device(device) => (0, encode_device(device)),
        };
        out.extend((EXTENDED | layout).to_le_bytes());
        out.extend(self.xattr_count.to_le_bytes());
        out.extend((self.file_type | self.attributes.permissions).to_le_bytes());
        out.extend([0; 2]);
        out.extend(self.size.to_le_bytes());
        out.extend(union.to_le_bytes());
        out.extend(self.ino.to_le_bytes());
        out.extend(self.attributes.uid.to_le_bytes());
        out.extend(self.attributes.gid.to_le_bytes());
        out.extend(self.attributes.modified.seconds.to_le_bytes());
        out.extend(self.attributes.modified.nanoseconds.to_le_bytes());
        out.extend(self.links.to_le_bytes());
        out.extend([0; 16]);
    }
}

/// Linux's `new_encode_dev`: 12 bits of major in the middle of 20 bits of minor.
fn encode_device(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major & 0xfff) << 8 | (device.minor & !0xff) << 12
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblock_survives_and_damage_shows() {
        for block_size in [BlockSize::B512, BlockSize::B4096] {
            let superblock = Superblock {
                block_size,
                blocks: 77,
                inodes: 5,
                meta_block: 9,
                root_nid: 2,
                uuid: [7; 16],
            };
            let head = superblock.encode();
            let read = Superblock::decode(&head).unwrap();
            assert_eq!(
                (
                    read.block_size,
                    read.blocks,
                    read.inodes,
                    read.meta_block,
                    read.root_nid,
                    read.uuid
                ),
                (block_size, 77, 5, 9, 2, [7; 16])
            );
            let mut damaged = head.clone();
            damaged[1024 + 36] ^= 1;
            assert!(Superblock::decode(&damaged).is_none());
            assert!(Superblock::decode(&head[..1100]).is_none());
        }
    }
}
