//! Builds a layer's tree from the entries of its archive, in the order they come.
//!
//! Whiteouts and opaque marks (image-spec, "Layer Filesystem Changeset") speak about the layers below only, so
//! their place among the entries of their own layer does not matter.

use std::io::BufRead;

use super::data::DataWriter;
use super::record::Recorded;
use crate::erofs::{BlockSize, xattr};
use crate::error::{EntryFault, LayerError};
use crate::tar::{Entry, EntryKind, Reader, display_name};
use crate::tree::{
    Attributes, Directory, FileData, Inode, InodeId, Kind, Missing, Part, PathFault, Tree, Xattr,
    components,
};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

/// Names that `aufs` keeps for itself in every directory.
const AUFS_PREFIX: &[u8] = b".wh..wh.";

/// Longest name of a directory entry on Linux (`NAME_MAX`).
const MAX_NAME_BYTES: usize = 255;

/// Longest target of a symbolic link on Linux (`PATH_MAX` less its NUL).
const MAX_TARGET_BYTES: usize = 4095;

/// Bits that the kernel has for a device's numbers.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

/// The tree so far.
#[derive(Debug)]
pub(super) struct Builder {
    tree: Tree,
    block_size: BlockSize,
    max_entries: u64,
}

impl Builder {
    pub(super) fn new(block_size: BlockSize, max_entries: u64) -> Self {
        Self { tree: Tree::new(), block_size, max_entries }
    }

    pub(super) fn into_tree(self) -> Tree {
        self.tree
    }

    /// Takes one entry; its data goes to `data` as it is read.
    pub(super) fn add<R: BufRead>(
        &mut self,
        mut entry: Entry,
        reader: &mut Reader<Recorded<'_, R>>,
        data: &mut DataWriter<'_>,
    ) -> Result<(), LayerError> {
        if reader.entries() > self.max_entries {
            return Err(LayerError::TooMuch { what: "entries", limit: self.max_entries });
        }
        let raw_name = std::mem::take(&mut entry.name);
        let fault = |fault| LayerError::Entry { entry: display_name(&raw_name), fault };
        let path = safe_path(&raw_name).map_err(fault)?;
        entry.xattrs = storable(std::mem::take(&mut entry.xattrs));
        if !xattr::fit(&entry.xattrs) {
            return Err(fault(EntryFault::XattrsTooLarge));
        }
        let Some((name, parents)) = path.split_last() else {
            return self.set_root(entry).map_err(fault);
        };
        let parent = self
            .tree
            .walk(Tree::ROOT, &parents.join(&b'/'), Missing::Create)
            .map_err(|reason| fault(reason.into()))?;
        if self.whiteout(parent, name).map_err(fault)? {
            return Ok(());
        }
        if entry.kind == EntryKind::HardLink {
            return self.hard_link(parent, name, &entry.link).map_err(fault);
        }
        if entry.kind == EntryKind::Directory {
            self.directory(parent, name, entry);
            return Ok(());
        }
        let kind = match entry.kind {
            EntryKind::Symlink => {
                if !(1..=MAX_TARGET_BYTES).contains(&entry.link.len()) || entry.link.contains(&0) {
                    return Err(fault(EntryFault::BadTarget));
                }
                Kind::Symlink(entry.link.as_slice().into())
            }
            EntryKind::CharDevice(device) | EntryKind::BlockDevice(device)
                if device.major > MAX_MAJOR || device.minor > MAX_MINOR =>
            {
                return Err(fault(EntryFault::BadDevice));
            }
            EntryKind::CharDevice(device) => Kind::CharDevice(device),
            EntryKind::BlockDevice(device) => Kind::BlockDevice(device),
            EntryKind::Fifo => Kind::Fifo,
            _ => Kind::File(self.store(&entry, reader, data)?),
        };
        let inode = Inode { attributes: entry.attributes, xattrs: entry.xattrs, kind };
        let id = self.tree.add(inode);
        self.tree.link(parent, name, id);
        Ok(())
    }

    /// Writes the entry's data at the next block boundary.
    fn store<R: BufRead>(
        &self,
        entry: &Entry,
        reader: &mut Reader<Recorded<'_, R>>,
        data: &mut DataWriter<'_>,
    ) -> Result<FileData, LayerError> {
        if entry.size == 0 {
            return Ok(FileData { size: 0, part: Part(0), block: 0 });
        }
        data.align(self.block_size.bytes())?;
        let start = data.position();
        let block = u32::try_from(start / self.block_size.bytes())
            .map_err(|_| LayerError::TooMuch { what: "blocks", limit: u32::MAX.into() })?;
        match &entry.segments {
            None => {
                reader.input_mut().data_follows(start, entry.size);
                reader.copy_stored(|bytes| data.append(bytes))?;
            }
            Some(segments) => {
                for segment in segments {
                    reader.input_mut().data_follows(start + segment.offset, segment.len);
                }
                let mut rest = segments.iter().copied();
                let mut left = 0;
                reader.copy_stored(|mut bytes| {
                    while !bytes.is_empty() {
                        while left == 0 {
                            // The map accounts for every stored byte, as the reader has checked.
                            let Some(segment) = rest.next() else { return Ok(()) };
                            data.skip_to(start + segment.offset)?;
                            left = segment.len;
                        }
                        let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        data.append(&bytes[..count])?;
                        left -= count as u64;
                        bytes = &bytes[count..];
                    }
                    Ok(())
                })?;
                data.skip_to(start.saturating_add(entry.size))?;
            }
        }
        Ok(FileData { size: entry.size, part: Part(0), block })
    }

    /// Takes a name that says something about the layers below; false for every other name.
    fn whiteout(&mut self, parent: InodeId, name: &[u8]) -> Result<bool, EntryFault> {
        if name == OPAQUE_MARK {
            if let Some(directory) = self.tree.directory_mut(parent) {
                directory.opaque = true;
            }
            return Ok(true);
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(true);
        }
        let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) else { return Ok(false) };
        if hidden.is_empty() || hidden == b"." || hidden == b".." {
            return Err(EntryFault::BadName);
        }
        match self.tree.lookup(parent, hidden) {
            Some(id) => {
                // What this layer has under the name stays; only a directory would let more show through.
                if let Some(directory) = self.tree.directory_mut(id) {
                    (directory.opaque, directory.implied) = (true, false);
                }
            }
            None => {
                let id = self.tree.add(Inode {
                    attributes: Attributes::IMPLIED,
                    xattrs: Vec::new(),
                    kind: Kind::Whiteout,
                });
                self.tree.link(parent, hidden, id);
            }
        }
        Ok(true)
    }

    fn hard_link(&mut self, parent: InodeId, name: &[u8], target: &[u8]) -> Result<(), EntryFault> {
        if target.len() > MAX_TARGET_BYTES {
            return Err(EntryFault::BadTarget);
        }
        let path = safe_path(target)?;
        let Some((last, parents)) = path.split_last() else { return Err(EntryFault::BadTarget) };
        let found = self
            .tree
            .walk(Tree::ROOT, &parents.join(&b'/'), Missing::Fail)
            .ok()
            .and_then(|directory| self.tree.lookup(directory, last))
            .filter(|id| !matches!(self.tree.inode(*id).kind, Kind::Whiteout));
        let id = match found {
            Some(id) if self.tree.inode(id).is_directory() => {
                return Err(EntryFault::LinkToDirectory);
            }
            Some(id) => id,
            None => self.tree.add(Inode {
                attributes: Attributes::IMPLIED,
                xattrs: Vec::new(),
                kind: Kind::LinkBelow(path.join(&b'/').into()),
            }),
        };
        self.tree.link(parent, name, id);
        Ok(())
    }

    /// Makes a directory, or describes one that is already there.
    fn directory(&mut self, parent: InodeId, name: &[u8], entry: Entry) {
        let existing = self.tree.lookup(parent, name);
        if let Some(id) = existing.filter(|id| self.tree.inode(*id).is_directory()) {
            self.describe(id, entry);
            return;
        }
        let mut inode = Inode::implied_directory(parent);
        if let Kind::Directory(Directory { opaque, .. }) = &mut inode.kind {
            // A file or a whiteout in its place has already removed what lies below.
            *opaque = existing.is_some();
        }
        let id = self.tree.add(inode);
        self.tree.link(parent, name, id);
        self.describe(id, entry);
    }

    fn set_root(&mut self, entry: Entry) -> Result<(), EntryFault> {
        if entry.kind != EntryKind::Directory {
            return Err(EntryFault::RootNotADirectory);
        }
        self.describe(Tree::ROOT, entry);
        Ok(())
    }

    fn describe(&mut self, id: InodeId, entry: Entry) {
        let inode = self.tree.inode_mut(id);
        inode.attributes = entry.attributes;
        inode.xattrs = entry.xattrs;
        if let Kind::Directory(directory) = &mut inode.kind {
            directory.implied = false;
        }
    }
}

/// The components of a name that stays where it is put.
///
/// A leading slash means the root of the image, as every engine reads it; `..` is refused even where it would
/// lead nowhere harmful, because no tool that packs images writes it.
fn safe_path(name: &[u8]) -> Result<Vec<&[u8]>, EntryFault> {
    if name.is_empty() || name.contains(&0) {
        return Err(EntryFault::BadName);
    }
    let path: Vec<&[u8]> = components(name).collect();
    for component in &path {
        if *component == b".." {
            return Err(EntryFault::ParentReference);
        }
        if component.len() > MAX_NAME_BYTES {
            return Err(EntryFault::BadName);
        }
    }
    Ok(path)
}

/// The attributes that mean something inside an image, sorted by name.
///
/// Namespaces without a place in the format are dropped (Linux would not set them either), and so are the marks
/// of overlayfs and our own: in an image they would be orders to whoever mounts it.
fn storable(mut xattrs: Vec<Xattr>) -> Vec<Xattr> {
    xattrs.retain(|xattr| {
        xattr::is_storable(&xattr.name)
            && !xattr.name.starts_with(b"trusted.overlay.")
            && !xattr.name.starts_with(b"trusted.microsandbox.")
    });
    xattrs.sort();
    xattrs
}

impl From<PathFault> for EntryFault {
    fn from(fault: PathFault) -> Self {
        match fault {
            PathFault::Missing | PathFault::NotADirectory => Self::NotADirectory,
            PathFault::TooDeep => Self::TooDeep,
            PathFault::TooManyLinks => Self::TooManyLinks,
        }
    }
}
