//! Reads a layer's tree back from its file, through `erofs-rs`.
//!
//! Only the superblock and the metadata behind the file data are loaded, so the cost follows the number of
//! entries and not the size of the layer.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use erofs_rs::backend::Image;
use erofs_rs::types::Inode as DiskInode;
use erofs_rs::{EroFS, Xattrs};

use super::format::{HEAD_BYTES, INODE_UNIT, Superblock};
use super::write::{XATTR_IMPLIED, XATTR_LINK_BELOW, XATTR_OPAQUE};
use crate::Error;
use crate::tree::{
    Attributes, Device, Directory, FileData, Inode, InodeId, Kind, Part, Timestamp, Tree, Xattr,
};

/// Reads the superblock of the image at `path`.
///
/// # Errors
/// [`Error::ReadStore`] when it cannot be read, [`Error::StoreDamaged`] when it is no image of ours.
pub(crate) fn superblock(path: &Path) -> Result<Superblock, Error> {
    Ok(Window::open(path, Extent::Head)?.superblock)
}

/// Reads the tree of the layer at `path`, whose files will be found in `part`.
///
/// # Errors
/// [`Error::ReadStore`] when it cannot be read, [`Error::StoreDamaged`] when it is no layer of ours.
pub(crate) fn layer_tree(path: &Path, part: Part) -> Result<Tree, Error> {
    let window = Window::open(path, Extent::Metadata)?;
    let damaged = |reason| Error::StoreDamaged { path: path.to_owned(), reason };
    let image = EroFS::new(&window).map_err(|_| damaged("the superblock is not readable"))?;
    TreeReader { image: &image, window: &window, part, by_nid: HashMap::new() }
        .read()
        .ok_or_else(|| damaged("the tree is not readable"))
}

struct TreeReader<'a> {
    image: &'a EroFS<&'a Window>,
    window: &'a Window,
    part: Part,
    /// Inodes with several names, which must stay one inode.
    by_nid: HashMap<u64, InodeId>,
}

impl TreeReader<'_> {
    fn read(mut self) -> Option<Tree> {
        let mut tree = Tree::new();
        let root = self.image.get_inode(self.window.superblock.root_nid.into()).ok()?;
        *tree.inode_mut(Tree::ROOT) = self.inode(&root)?;
        // The walk is depth first and tells each entry's depth: the stack holds the directories above it.
        let mut above = vec![Tree::ROOT];
        for entry in self.image.walk_dir("/").ok()? {
            let entry = entry.ok()?;
            above.truncate(entry.depth);
            let parent = *above.last()?;
            let id = match self.by_nid.get(&entry.inode.id()) {
                Some(id) => *id,
                None => {
                    let id = tree.add(self.inode(&entry.inode)?);
                    if entry.inode.nlink() > 1 && !entry.inode.is_dir() {
                        self.by_nid.insert(entry.inode.id(), id);
                    }
                    id
                }
            };
            tree.link(parent, entry.dir_entry.file_name(), id);
            if entry.inode.is_dir() {
                above.push(id);
            }
        }
        Some(tree)
    }

    fn inode(&self, disk: &DiskInode) -> Option<Inode> {
        let mut xattrs = match disk.xattr_size() {
            0 => Xattrs::new(),
            _ => self.image.xattrs_inode(*disk).ok()?,
        };
        let kind = self.kind(disk, &mut xattrs)?;
        let (seconds, nanoseconds) = disk.modified_unix();
        Some(Inode {
            attributes: Attributes {
                permissions: u16::try_from(disk.permissions().mode() & 0o7777).ok()?,
                uid: disk.uid(),
                gid: disk.gid(),
                modified: Timestamp { seconds, nanoseconds },
            },
            xattrs: xattrs.iter().map(|(name, value)| Xattr::new(name, value)).collect(),
            kind,
        })
    }

    /// What the inode is; takes the marks of layers out of its attributes.
    fn kind(&self, disk: &DiskInode, xattrs: &mut Xattrs) -> Option<Kind> {
        let file_type = disk.file_type();
        let kind = if disk.is_dir() {
            Kind::Directory(Directory {
                parent: Tree::ROOT,
                entries: BTreeMap::new(),
                opaque: xattrs.remove(XATTR_OPAQUE).is_some(),
                implied: xattrs.remove(XATTR_IMPLIED).is_some(),
            })
        } else if disk.is_file() {
            match xattrs.remove(XATTR_LINK_BELOW) {
                Some(target) => Kind::LinkBelow(target.into()),
                None => Kind::File(FileData {
                    size: disk.data_size(),
                    part: self.part,
                    block: self.window.first_block(disk.id())?,
                }),
            }
        } else if disk.is_symlink() {
            Kind::Symlink(self.image.read_link_inode(*disk).ok()?.as_bytes().into())
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else if file_type.is_socket() {
            Kind::Socket
        } else {
            let (major, minor) = disk.device()?;
            match (file_type.is_char_device(), major, minor) {
                (true, 0, 0) => Kind::Whiteout,
                (true, ..) => Kind::CharDevice(Device { major, minor }),
                (false, ..) => Kind::BlockDevice(Device { major, minor }),
            }
        };
        Some(kind)
    }
}

/// How much of an image to load.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Head,
    Metadata,
}

/// The parts of an image that hold no file data, at their places.
struct Window {
    superblock: Superblock,
    head: Vec<u8>,
    metadata_offset: u64,
    metadata: Vec<u8>,
    len: u64,
}

impl Window {
    fn open(path: &Path, extent: Extent) -> Result<Self, Error> {
        let fault = |source: io::Error| Error::ReadStore { path: path.to_owned(), source };
        let damaged = |reason| Error::StoreDamaged { path: path.to_owned(), reason };
        let file = File::open(path).map_err(fault)?;
        let len = file.metadata().map_err(fault)?.len();
        if len < HEAD_BYTES {
            return Err(damaged("it is shorter than a superblock"));
        }
        let mut head = vec![0; 4096];
        file.read_exact_at(&mut head, 0).map_err(fault)?;
        let superblock =
            Superblock::decode(&head).ok_or_else(|| damaged("the superblock is not ours"))?;
        let metadata_offset = u64::from(superblock.meta_block) * superblock.block_size.bytes();
        let mut metadata = Vec::new();
        if extent == Extent::Metadata {
            let size = len.checked_sub(metadata_offset).ok_or_else(|| damaged("it is cut off"))?;
            metadata = vec![0; usize::try_from(size).map_err(|_| damaged("it is too large"))?];
            file.read_exact_at(&mut metadata, metadata_offset).map_err(fault)?;
        }
        Ok(Self { superblock, head, metadata_offset, metadata, len })
    }

    /// `i_u` of an inode: the one field of a plain file that `erofs-rs` keeps to itself.
    fn first_block(&self, nid: u64) -> Option<u32> {
        let at = usize::try_from(nid.checked_mul(INODE_UNIT)?.checked_add(16)?).ok()?;
        let bytes = self.metadata.get(at..at.checked_add(4)?)?;
        bytes.try_into().ok().map(u32::from_le_bytes)
    }
}

impl Image for &Window {
    fn get<R: RangeBounds<u64>>(&self, range: R) -> Option<&[u8]> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start.checked_add(1)?,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end.checked_add(1)?,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.len,
        };
        let (bytes, base) = if start >= self.metadata_offset {
            (&self.metadata, self.metadata_offset)
        } else {
            (&self.head, 0)
        };
        let place = |offset: u64| usize::try_from(offset.checked_sub(base)?).ok();
        bytes.get(place(start)?..place(end)?)
    }

    fn len(&self) -> u64 {
        self.len
    }
}
