//! Lays a tree down as EROFS metadata: inodes, directories and link targets in one sequential pass.
//!
//! ```text
//! inode table: inode [attributes] [short content] …        directories and long targets, whole blocks
//! ^ start, aligned to 4096                                  ^ aligned to a block       ^ padded to 4096
//! ```
//! [`Plan`] decides every address from the tree alone; [`Plan::write`] then emits bytes in ascending order. The
//! plan is needed first because the layers behind an image's metadata begin where the metadata ends.

use std::io::{self, Write};

use super::dirent::{self, Dirent};
use super::format::{Content, ExtendedInode, INODE_BYTES, INODE_UNIT, PART_ALIGN, mode};
use super::{BlockSize, xattr};
use crate::tree::{Inode, InodeId, Kind, Part, Tree};

/// Attribute that marks a layer's directory as hiding what lies below; overlayfs reads it too.
pub(super) const XATTR_OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Attribute that marks a layer's directory as described by no entry.
pub(super) const XATTR_IMPLIED: &[u8] = b"trusted.microsandbox.implied";

/// Attribute that makes a layer's empty file a hard link to a path in the layers below.
pub(super) const XATTR_LINK_BELOW: &[u8] = b"trusted.microsandbox.link";

/// Units of the inode table that stay empty: a number of zero means "deleted" to `readdir`.
const FIRST_NID: u64 = 2;

/// Where every inode and directory of a tree goes.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    tree: &'a Tree,
    block_size: BlockSize,
    /// Reachable inodes in ascending order of place.
    order: Vec<Placed>,
    /// By inode: its number, 0 where unreachable.
    nids: Vec<u64>,
    /// By inode: names that lead to it.
    links: Vec<u32>,
    inode_bytes: u64,
    content_blocks: u64,
}

#[derive(Debug)]
struct Placed {
    id: InodeId,
    /// Size of a directory or link target that is kept with the metadata, 0 for everything else.
    content_bytes: u64,
    /// First block of that content, counted from the content area; `None` if it stands behind the inode.
    content_block: Option<u64>,
}

impl<'a> Plan<'a> {
    /// Plans `tree`.
    pub(crate) fn new(tree: &'a Tree, block_size: BlockSize) -> Self {
        let mut plan = Self {
            tree,
            block_size,
            order: Vec::with_capacity(tree.len()),
            nids: vec![0; tree.len()],
            links: vec![0; tree.len()],
            inode_bytes: FIRST_NID * INODE_UNIT,
            content_blocks: 0,
        };
        plan.place(Tree::ROOT);
        // The root's own parent.
        plan.links[0] += 1;
        // All children of a directory lie together: listing it and looking at each touches few blocks.
        let mut directories = vec![Tree::ROOT];
        while let Some(id) = directories.pop() {
            let entries = tree.directory(id).into_iter().flat_map(|directory| &directory.entries);
            let first_child = directories.len();
            for child in entries.map(|(_, child)| *child) {
                if plan.nids[child.0 as usize] == 0 {
                    plan.place(child);
                }
                plan.links[child.0 as usize] += 1;
                if tree.inode(child).is_directory() {
                    // Its `..`, and its name counted above stands for its `.` too.
                    plan.links[id.0 as usize] += 1;
                    plan.links[child.0 as usize] += 1;
                    directories.push(child);
                }
            }
            directories[first_child..].reverse();
        }
        plan.links[0] += 1;
        plan
    }

    /// Inodes that will be written.
    pub(crate) fn inodes(&self) -> u64 {
        self.order.len() as u64
    }

    /// Number of the root, which is placed first: in the first block of the table or at the start of the second.
    pub(crate) fn root_nid(&self) -> u16 {
        u16::try_from(self.nids[Tree::ROOT.0 as usize]).expect("a block has fewer units than 2^16")
    }

    /// Bytes from the start of the inode table to the end of the metadata, padding included.
    pub(crate) fn bytes(&self) -> u64 {
        let content = self.content_blocks * self.block_size.bytes();
        (self.content_offset() + content).next_multiple_of(PART_ALIGN)
    }

    /// Parts that some reachable file's data lies in, by position.
    pub(crate) fn used_parts(&self) -> Vec<Part> {
        let mut used: Vec<Part> = self
            .order
            .iter()
            .filter_map(|placed| match &self.tree.inode(placed.id).kind {
                Kind::File(data) if data.size > 0 => Some(data.part),
                _ => None,
            })
            .collect();
        used.sort_by_key(|part| part.0);
        used.dedup();
        used
    }

    /// Writes the metadata; `meta_block` is the block it starts at, `part_block` the first block of each part.
    ///
    /// # Errors
    /// What `out` reports.
    pub(crate) fn write(
        &self,
        out: &mut impl Write,
        meta_block: u32,
        part_block: &dyn Fn(Part) -> u32,
    ) -> io::Result<()> {
        let content_start = u64::from(meta_block) + self.content_offset() / self.block_size.bytes();
        let mut at = 0;
        let mut buffer = Vec::new();
        for placed in &self.order {
            buffer.clear();
            let offset = self.nids[placed.id.0 as usize] * INODE_UNIT;
            buffer.resize(to_usize(offset - at), 0);
            self.encode_inode(placed, content_start, part_block, &mut buffer);
            out.write_all(&buffer)?;
            at += buffer.len() as u64;
        }
        at = pad(out, at, self.content_offset())?;
        for placed in self.order.iter().filter(|placed| placed.content_block.is_some()) {
            buffer.clear();
            self.encode_content(placed.id, &mut buffer);
            out.write_all(&buffer)?;
            at += buffer.len() as u64;
            at = pad(out, at, at.next_multiple_of(self.block_size.bytes()))?;
        }
        pad(out, at, self.bytes())?;
        Ok(())
    }

    fn content_offset(&self) -> u64 {
        self.inode_bytes.next_multiple_of(self.block_size.bytes())
    }

    /// Gives an inode the next place in the table, and its content one behind it or in blocks of its own.
    fn place(&mut self, id: InodeId) {
        let inode = self.tree.inode(id);
        let block = self.block_size.bytes();
        let content = match &inode.kind {
            Kind::Directory(directory) => {
                let names = with_dots(&directory.entries).map(|(name, _)| name);
                dirent::encoded_len(names, self.block_size)
            }
            Kind::Symlink(target) => target.len() as u64,
            _ => 0,
        };
        let fixed = INODE_BYTES + xattr::encoded_len(&stored_xattrs(inode)) as u64;
        let inline = content > 0 && fixed + content <= block;
        let mut at = self.inode_bytes.next_multiple_of(INODE_UNIT);
        // An inode may cross a block, but readers that need not join two blocks are faster; inline content
        // must not cross one.
        let together = if inline { fixed + content } else { INODE_BYTES };
        if at % block + together > block {
            at = at.next_multiple_of(block);
        }
        self.nids[id.0 as usize] = at / INODE_UNIT;
        self.inode_bytes = at + fixed + if inline { content } else { 0 };
        let content_block = (content > 0 && !inline).then_some(self.content_blocks);
        if content_block.is_some() {
            self.content_blocks += self.block_size.blocks(content);
        }
        self.order.push(Placed { id, content_bytes: content, content_block });
    }

    fn encode_inode(
        &self,
        placed: &Placed,
        content_start: u64,
        part_block: &dyn Fn(Part) -> u32,
        out: &mut Vec<u8>,
    ) {
        let inode = self.tree.inode(placed.id);
        let xattrs = stored_xattrs(inode);
        let (size, content) = match &inode.kind {
            Kind::File(data) if data.size == 0 => (0, Content::Blocks(0)),
            Kind::File(data) => (data.size, Content::Blocks(part_block(data.part) + data.block)),
            Kind::BlockDevice(device) | Kind::CharDevice(device) => (0, Content::Device(*device)),
            _ => match placed.content_block {
                Some(block) => {
                    (placed.content_bytes, Content::Blocks(to_u32(content_start + block)))
                }
                None if placed.content_bytes > 0 => (placed.content_bytes, Content::Inline),
                None => (0, Content::Blocks(0)),
            },
        };
        let nid = self.nids[placed.id.0 as usize];
        ExtendedInode {
            attributes: inode.attributes,
            file_type: file_type(&inode.kind).0,
            size,
            links: self.links[placed.id.0 as usize],
            xattr_count: xattr::count(&xattrs),
            content,
            ino: to_u32(nid & u64::from(u32::MAX)),
        }
        .encode(out);
        xattr::encode(&xattrs, out);
        if matches!(content, Content::Inline) {
            self.encode_content(placed.id, out);
        }
    }

    fn encode_content(&self, id: InodeId, out: &mut Vec<u8>) {
        match &self.tree.inode(id).kind {
            Kind::Symlink(target) => out.extend_from_slice(target),
            Kind::Directory(directory) => {
                let entries: Vec<Dirent<'_>> = with_dots(&directory.entries)
                    .map(|(name, child)| {
                        let target = match (child, name) {
                            (Some(child), _) => child,
                            (None, b"..") => directory.parent,
                            (None, _) => id,
                        };
                        let file_type = file_type(&self.tree.inode(target).kind).1;
                        Dirent { name, nid: self.nids[target.0 as usize], file_type }
                    })
                    .collect();
                dirent::encode(&entries, self.block_size, out);
            }
            _ => {}
        }
    }
}

/// The names of a directory with `.` and `..` where byte order puts them.
fn with_dots(
    entries: &std::collections::BTreeMap<Box<[u8]>, InodeId>,
) -> impl Iterator<Item = (&[u8], Option<InodeId>)> {
    use std::ops::Bound::{Excluded, Unbounded};
    let dots: [&[u8]; 2] = [b".", b".."];
    let before = entries.range::<[u8], _>((Unbounded, Excluded(dots[0])));
    let between = entries.range::<[u8], _>((Excluded(dots[0]), Excluded(dots[1])));
    let after = entries.range::<[u8], _>((Excluded(dots[1]), Unbounded));
    before
        .map(|(name, child)| (&**name, Some(*child)))
        .chain([(dots[0], None)])
        .chain(between.map(|(name, child)| (&**name, Some(*child))))
        .chain([(dots[1], None)])
        .chain(after.map(|(name, child)| (&**name, Some(*child))))
}

/// An inode's attributes with the marks that only a layer has, sorted by name.
fn stored_xattrs(inode: &Inode) -> std::borrow::Cow<'_, [crate::tree::Xattr]> {
    use crate::tree::Xattr;
    let mut marks = Vec::new();
    match &inode.kind {
        Kind::Directory(directory) => {
            if directory.implied {
                marks.push(Xattr::new(XATTR_IMPLIED, b""));
            }
            if directory.opaque {
                marks.push(Xattr::new(XATTR_OPAQUE, b"y"));
            }
        }
        Kind::LinkBelow(target) => marks.push(Xattr::new(XATTR_LINK_BELOW, target)),
        _ => {}
    }
    if marks.is_empty() {
        return (&inode.xattrs).into();
    }
    marks.extend_from_slice(&inode.xattrs);
    marks.into()
}

/// `st_mode` type bits, and the type that directory entries carry (`erofs_fs.h`: `EROFS_FT_*`).
fn file_type(kind: &Kind) -> (u16, u8) {
    match kind {
        Kind::File(_) | Kind::LinkBelow(_) => (mode::FILE, 1),
        Kind::Directory(_) => (mode::DIRECTORY, 2),
        // A whiteout is what overlayfs makes of it: a character device with number 0:0.
        Kind::CharDevice(_) | Kind::Whiteout => (mode::CHAR, 3),
        Kind::BlockDevice(_) => (mode::BLOCK, 4),
        Kind::Fifo => (mode::FIFO, 5),
        Kind::Socket => (mode::SOCKET, 6),
        Kind::Symlink(_) => (mode::SYMLINK, 7),
    }
}

fn pad(out: &mut impl Write, at: u64, end: u64) -> io::Result<u64> {
    const ZEROS: [u8; 4096] = [0; 4096];
    out.write_all(&ZEROS[..to_usize(end - at)])?;
    Ok(end)
}

fn to_u32(value: u64) -> u32 {
    u32::try_from(value).expect("the size of an image is checked before it is written")
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("gaps are shorter than a block")
}
