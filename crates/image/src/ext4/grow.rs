//! Growing an upper disk that no machine is using: more block groups behind those that it has.
//!
//! ```text
//! new group: [superblock copy] [descriptors] | block bitmap | inode bitmap | inode table | free
//! ```
//! Descriptors of new groups go into the table behind the superblock while it has room; then, as that table cannot
//! grow, into blocks of their own at the start of each 128 groups (`meta_bg`). Structures are those of the kernel's
//! documentation, "ext4 Data Structures and Algorithms"; reading and checksums come from `mkext4`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use mkext4::csum;
use mkext4::spec::{GroupDesc, Superblock, bg_flags, ro_compat};

use super::{BLOCK_BYTES, UpperDisk};
use crate::{Cause, Error};

const BLOCKS_PER_GROUP: u64 = 32768;
const BLOCK: usize = 4096;
const DESCRIPTOR: usize = 32;
const GROUPS_PER_BLOCK: u64 = 128;
const INODES_PER_BLOCK: u64 = 16;

/// `s_feature_incompat`: descriptors may lie in their own groups; and the two that would need other arithmetic.
const META_BG: u32 = 0x10;
const BIT64: u32 = 0x80;

/// Feature: the journal has something to be replayed.
const RECOVER: u32 = 0x4;

/// Blocks that a last group must have free to be worth its own metadata; `mke2fs` has the same figure.
const WORTH_BLOCKS: u64 = 50;

/// Makes the disk at `path` as large as `size_bytes`, rounded up to 4096; one that is as large stays as it is.
///
/// The end of the disk stays unused where a last group would be all metadata, up to some megabytes. After a crash, do
/// it again: the new size counts when everything else has been written.
///
/// # Errors
/// [`Error::Ext4`] when the disk is none of ours or cannot be written.
pub fn grow(path: &Path, size_bytes: u64) -> Result<(), Error> {
    let failed = |source: Cause| Error::Ext4 {
        action: "grow",
        disk: path.to_owned(),
        entry: "".into(),
        source: io::Error::other(source),
    };
    // What is in the journal belongs to the old size. A guest that ended in order left none, and that is
    // all that can be said of the journal of a disk that a guest has used: it has checksums then.
    if needs_replay(path).map_err(failed)? {
        UpperDisk::edit(path)?.finish()?;
    }
    let grow = || -> Result<(), Cause> {
        let file = File::options().read(true).write(true).open(path)?;
        let size_bytes = size_bytes.next_multiple_of(BLOCK_BYTES);
        if size_bytes > file.metadata()?.len() {
            file.set_len(size_bytes)?;
        }
        Grown::read(file)?.grow(size_bytes / BLOCK_BYTES)
    };
    grow().map_err(failed)
}

fn needs_replay(path: &Path) -> Result<bool, Cause> {
    let mut raw = vec![0; Superblock::LEN];
    File::open(path)?.read_exact_at(&mut raw, 1024)?;
    Ok(Superblock::decode(&raw)?.feature_incompat & RECOVER != 0)
}

/// A file system while it grows.
struct Grown {
    file: File,
    /// The superblock as it lies on disk, so that fields unknown here stay.
    raw: Vec<u8>,
    superblock: Superblock,
    /// Blocks of the table behind the superblock, and behind its copies in the groups that it covers.
    table_blocks: u64,
    seed: u32,
    /// Descriptors by group.
    descriptors: Vec<GroupDesc>,
}

impl Grown {
    fn read(file: File) -> Result<Self, Cause> {
        let mut raw = vec![0; Superblock::LEN];
        file.read_exact_at(&mut raw, 1024)?;
        let superblock = Superblock::decode(&raw)?;
        let is_ours = superblock.block_size() == BLOCK_BYTES
            && u64::from(superblock.blocks_per_group) == BLOCKS_PER_GROUP
            && superblock.desc_size() == DESCRIPTOR
            && superblock.first_data_block == 0
            && superblock.reserved_gdt_blocks == 0
            && superblock.feature_ro_compat & ro_compat::METADATA_CSUM != 0
            && superblock.feature_ro_compat & ro_compat::SPARSE_SUPER != 0
            && superblock.feature_incompat & BIT64 == 0;
        if !is_ours {
            return Err("it was not made by this formatter".into());
        }
        let table_blocks = match superblock.feature_incompat & META_BG {
            0 => superblock.group_count().div_ceil(GROUPS_PER_BLOCK),
            _ => superblock.first_meta_bg.into(),
        };
        let seed = csum::fs_seed(&superblock.uuid);
        let mut this = Self { file, raw, superblock, table_blocks, seed, descriptors: Vec::new() };
        for group in 0..this.superblock.group_count() {
            let mut bytes = [0; DESCRIPTOR];
            let block = this.descriptor_blocks(group, group + 1).next().ok_or("no descriptors")?;
            this.file.read_exact_at(&mut bytes, block * BLOCK_BYTES + place_in_block(group))?;
            this.descriptors.push(GroupDesc::decode(&bytes)?);
        }
        Ok(this)
    }

    fn grow(mut self, wanted_blocks: u64) -> Result<(), Cause> {
        let old_groups = self.superblock.group_count();
        let blocks = self.usable(wanted_blocks);
        if blocks <= self.superblock.blocks_count {
            return Ok(());
        }
        if blocks >= u32::MAX.into() {
            return Err("it would have more than 2^32 blocks".into());
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        self.fill_last_group(blocks)?;
        for group in old_groups..groups {
            self.add_group(group, blocks)?;
        }
        // Nothing counts that lies behind the old end, until the superblock says that there is more.
        self.file.sync_all()?;
        self.count(blocks)?;
        self.write_descriptors(groups)?;
        self.write_superblocks(groups)?;
        Ok(self.file.sync_all()?)
    }

    /// `wanted` without a last group that would have no room to offer.
    fn usable(&self, wanted: u64) -> u64 {
        let group = wanted / BLOCKS_PER_GROUP;
        let rest = wanted % BLOCKS_PER_GROUP;
        let is_new = group >= self.superblock.group_count();
        if is_new && rest < self.metadata_blocks(group) + WORTH_BLOCKS {
            return wanted - rest;
        }
        wanted
    }

    /// Frees what the last group could not have before.
    fn fill_last_group(&mut self, blocks: u64) -> Result<(), Cause> {
        let last = self.superblock.group_count() - 1;
        let old_end = self.superblock.blocks_count - last * BLOCKS_PER_GROUP;
        let new_end = (blocks - last * BLOCKS_PER_GROUP).min(BLOCKS_PER_GROUP);
        let descriptor = self.descriptors.last_mut().ok_or("it has no groups")?;
        if descriptor.flags & bg_flags::BLOCK_UNINIT != 0 {
            return Err("its last group has no bitmap".into());
        }
        let mut bitmap = vec![0; BLOCK];
        self.file.read_exact_at(&mut bitmap, descriptor.block_bitmap * BLOCK_BYTES)?;
        set_bits(&mut bitmap, old_end, new_end, false);
        self.file.write_all_at(&bitmap, descriptor.block_bitmap * BLOCK_BYTES)?;
        descriptor.free_blocks_count = free_bits(&bitmap);
        descriptor.block_bitmap_csum = csum::block_bitmap(self.seed, &bitmap).into();
        Ok(())
    }

    /// Writes the bitmap of a new group; its inode table and inode bitmap are holes, which are zeros.
    fn add_group(&mut self, group: u64, blocks: u64) -> Result<(), Cause> {
        let start = group * BLOCKS_PER_GROUP;
        let front = self.front_blocks(group);
        let used = self.metadata_blocks(group);
        let end = (blocks - start).min(BLOCKS_PER_GROUP);
        let mut bitmap = vec![0; BLOCK];
        set_bits(&mut bitmap, 0, used, true);
        set_bits(&mut bitmap, end, BLOCKS_PER_GROUP, true);
        let block_bitmap = start + front;
        self.file.write_all_at(&bitmap, block_bitmap * BLOCK_BYTES)?;
        let inodes = self.superblock.inodes_per_group;
        self.descriptors.push(GroupDesc {
            block_bitmap,
            inode_bitmap: block_bitmap + 1,
            inode_table: block_bitmap + 2,
            free_blocks_count: free_bits(&bitmap),
            free_inodes_count: inodes,
            used_dirs_count: 0,
            flags: bg_flags::INODE_UNINIT | bg_flags::INODE_ZEROED,
            exclude_bitmap: 0,
            block_bitmap_csum: csum::block_bitmap(self.seed, &bitmap).into(),
            inode_bitmap_csum: 0,
            itable_unused: inodes,
            checksum: 0,
        });
        Ok(())
    }

    /// Puts the new totals into the superblock.
    fn count(&mut self, blocks: u64) -> Result<(), Cause> {
        let groups = self.descriptors.len() as u64;
        let inodes = groups * u64::from(self.superblock.inodes_per_group);
        let free = |count: fn(&GroupDesc) -> u32| -> u64 {
            self.descriptors.iter().map(|descriptor| u64::from(count(descriptor))).sum()
        };
        let free_blocks = free(|descriptor| descriptor.free_blocks_count);
        let free_inodes = free(|descriptor| descriptor.free_inodes_count);
        let mut fields = vec![
            (0x00, inodes),
            (0x04, blocks),
            (0x0c, free_blocks),
            (0x10, free_inodes),
            // The overhead: the kernel counts it anew where it is not told.
            (0x248, 0),
        ];
        if groups > self.table_blocks * GROUPS_PER_BLOCK {
            fields.push((0x60, u64::from(self.superblock.feature_incompat | META_BG)));
            fields.push((0x104, self.table_blocks));
        }
        for (at, value) in fields {
            self.raw[at..at + 4].copy_from_slice(&u32::try_from(value)?.to_le_bytes());
        }
        Ok(())
    }

    fn write_descriptors(&mut self, groups: u64) -> io::Result<()> {
        for group in 0..groups {
            let descriptor = &mut self.descriptors[to_usize(group)];
            let mut bytes = [0; DESCRIPTOR];
            descriptor.checksum = 0;
            descriptor.encode32(&mut bytes);
            let number = u32::try_from(group).unwrap_or(u32::MAX);
            descriptor.checksum = csum::group_desc(self.seed, number, &bytes);
            descriptor.encode32(&mut bytes);
            for block in self.descriptor_blocks(group, groups) {
                self.file.write_all_at(&bytes, block * BLOCK_BYTES + place_in_block(group))?;
            }
        }
        Ok(())
    }

    /// The copies, then the one that counts.
    fn write_superblocks(&mut self, groups: u64) -> io::Result<()> {
        for group in (0..groups).rev().filter(|group| has_superblock(*group)) {
            // A copy says which group it lies in (`s_block_group_nr`).
            let number = u16::try_from(group).unwrap_or(u16::MAX);
            self.raw[0x5a..0x5c].copy_from_slice(&number.to_le_bytes());
            let checksum = csum::superblock(&self.raw);
            self.raw[0x3fc..0x400].copy_from_slice(&checksum.to_le_bytes());
            let place = if group == 0 { 1024 } else { group * BLOCKS_PER_GROUP * BLOCK_BYTES };
            self.file.write_all_at(&self.raw, place)?;
        }
        Ok(())
    }

    /// The blocks that hold this group's descriptor, the one that is read first, in a disk of `groups` groups.
    fn descriptor_blocks(&self, group: u64, groups: u64) -> impl Iterator<Item = u64> + use<> {
        let (table_blocks, block) = (self.table_blocks, group / GROUPS_PER_BLOCK);
        let is_in_table = block < table_blocks;
        let holders: Vec<u64> = if is_in_table {
            (0..groups.min(table_blocks * GROUPS_PER_BLOCK))
                .filter(|holder| has_superblock(*holder))
                .collect()
        } else {
            let first = block * GROUPS_PER_BLOCK;
            let three = [first, first + 1, first + GROUPS_PER_BLOCK - 1];
            three.into_iter().filter(|holder| *holder < groups).collect()
        };
        holders.into_iter().map(move |holder| {
            let behind = u64::from(has_superblock(holder));
            holder * BLOCKS_PER_GROUP + behind + if is_in_table { block } else { 0 }
        })
    }

    /// Blocks of a new group before its bitmaps.
    fn front_blocks(&self, group: u64) -> u64 {
        let copy = u64::from(has_superblock(group));
        if group < self.table_blocks * GROUPS_PER_BLOCK {
            return copy * (1 + self.table_blocks);
        }
        let in_block = group % GROUPS_PER_BLOCK;
        copy + u64::from(matches!(in_block, 0 | 1) || in_block == GROUPS_PER_BLOCK - 1)
    }

    /// Blocks of a new group that files cannot have.
    fn metadata_blocks(&self, group: u64) -> u64 {
        let table = u64::from(self.superblock.inodes_per_group).div_ceil(INODES_PER_BLOCK);
        self.front_blocks(group) + 2 + table
    }
}

/// Where in its block a group's descriptor lies.
fn place_in_block(group: u64) -> u64 {
    group % GROUPS_PER_BLOCK * DESCRIPTOR as u64
}

/// `sparse_super`: copies lie in groups 0 and 1 and in powers of 3, 5 and 7.
fn has_superblock(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

fn set_bits(bitmap: &mut [u8], from: u64, to: u64, value: bool) {
    for bit in from..to {
        let mask = 1 << (bit % 8);
        let byte = &mut bitmap[to_usize(bit / 8)];
        *byte = if value { *byte | mask } else { *byte & !mask };
    }
}

fn free_bits(bitmap: &[u8]) -> u32 {
    bitmap.iter().map(|byte| byte.count_zeros()).sum()
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("groups and bits of a group fit into memory")
}
