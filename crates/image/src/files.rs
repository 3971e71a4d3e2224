//! Files of an image: looked up, listed and read where they lie, without a machine.
//!
//! Paths are walked in the image's own tree: links are followed inside the image, `..` ends at its root, and nothing
//! leads to the host.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::erofs::{BlockSize, read};
use crate::image::DiskExtent;
use crate::tree::{Inode, InodeId, Kind, Part, Tree, components};
use crate::{Error, Image, Reference};

/// Deepest chain of symbolic links that is followed; Linux's own limit.
const MAX_LINK_HOPS: usize = 40;

const NO_DIRECTORY: &str = "is no directory";

const NOT_A_DIRECTORY: &str = "goes through something that is no directory";

/// The tree of one image, in memory; the bytes of its files stay where they are.
#[derive(Debug)]
pub struct ImageFiles {
    image: String,
    tree: Tree,
    block_size: BlockSize,
    extents: Vec<DiskExtent>,
}

/// What there is to know of a file without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FileStat {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of an ordinary file or of a link's target; 0 for everything else.
    pub size_bytes: u64,
    /// When its content was last changed.
    pub modified: SystemTime,
    /// Extended attributes, ordered by name.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A character device.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// An ordinary file.
    File,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink {
        /// What it points to, as it is written.
        target: PathBuf,
    },
}

/// What a path that ends in a link means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// What the link points to.
    Follow,
    /// The link itself.
    Keep,
}

impl Image {
    /// Loads the image's tree, to look at its files. Costs time and memory by the number of files, not by their size.
    ///
    /// # Errors
    /// [`Error::ReadStore`], [`Error::StoreDamaged`].
    pub fn files(&self) -> Result<ImageFiles, Error> {
        let extents = self.extents().to_vec();
        let metadata = extents.first().map(|extent| extent.path.clone()).unwrap_or_default();
        let name = self.references().first().map(Reference::familiar);
        Ok(ImageFiles {
            image: name.unwrap_or_else(|| self.digest().to_string()),
            tree: read::layer_tree(&metadata, Part(0))?,
            block_size: read::superblock(&metadata)?.block_size,
            extents,
        })
    }
}

impl ImageFiles {
    /// What is at `path`, which is taken from the root whether it begins with a slash or not.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`].
    pub fn stat(&self, path: impl AsRef<Path>, links: Links) -> Result<FileStat, Error> {
        let id = self.find(path.as_ref(), links)?;
        Ok(self.stat_of(id))
    }

    /// The entries of the directory at `path`, ordered by name. A link to a directory is followed.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`] when there is nothing, or no directory.
    pub fn list(&self, path: impl AsRef<Path>) -> Result<Vec<(OsString, FileStat)>, Error> {
        let path = path.as_ref();
        let id = self.find(path, Links::Follow)?;
        let directory = self.tree.directory(id).ok_or_else(|| self.fault(path, NO_DIRECTORY))?;
        let entries = directory.entries.iter();
        Ok(entries
            .map(|(name, id)| (OsString::from_vec(name.to_vec()), self.stat_of(*id)))
            .collect())
    }

    /// Everything beneath the directory at `path`, as paths from the root, each directory before what is in it.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub fn walk(&self, path: impl AsRef<Path>) -> Result<Vec<(PathBuf, FileStat)>, Error> {
        let path = path.as_ref();
        let root = self.find(path, Links::Follow)?;
        if self.tree.directory(root).is_none() {
            return Err(self.fault(path, NO_DIRECTORY));
        }
        let mut found = Vec::new();
        let mut waiting = vec![(Path::new("/").join(path), root)];
        let mut is_first = true;
        while let Some((path, id)) = waiting.pop() {
            if let Some(directory) = self.tree.directory(id) {
                let entries = directory.entries.iter().rev();
                waiting.extend(entries.map(|(name, id)| (path.join(OsStr::from_bytes(name)), *id)));
            }
            if !std::mem::take(&mut is_first) {
                found.push((path, self.stat_of(id)));
            }
        }
        Ok(found)
    }

    /// The bytes of the file at `path`; links are followed.
    ///
    /// # Errors
    /// [`Error::NoSuchFile`] when there is nothing, or no ordinary file; [`Error::ReadStore`].
    pub fn read(&self, path: impl AsRef<Path>) -> Result<FileReader, Error> {
        let path = path.as_ref();
        let id = self.find(path, Links::Follow)?;
        let Kind::File(data) = &self.tree.inode(id).kind else {
            return Err(self.fault(path, "is no ordinary file"));
        };
        let mut start = u64::from(data.block) * self.block_size.bytes();
        for extent in &self.extents {
            if start < extent.size_bytes && start + data.size <= extent.size_bytes {
                let file = File::open(&extent.path)
                    .map_err(|source| Error::ReadStore { path: extent.path.clone(), source })?;
                return Ok(FileReader { file, offset: start, left: data.size });
            }
            start = start.saturating_sub(extent.size_bytes);
        }
        Err(Error::StoreDamaged {
            path: self.extents.first().map(|extent| extent.path.clone()).unwrap_or_default(),
            reason: "a file lies outside of the disk",
        })
    }

    /// Walks to where a path leads.
    fn find(&self, path: &Path, links: Links) -> Result<InodeId, Error> {
        let bytes = path.as_os_str().as_bytes();
        // A slash at the end means a directory, as everywhere.
        let wants_directory = bytes.ends_with(b"/");
        let mut rest: VecDeque<&[u8]> = components(bytes).collect();
        let (mut at, mut hops) = (Tree::ROOT, 0);
        while let Some(name) = rest.pop_front() {
            let directory = self.tree.directory(at);
            let directory = directory.ok_or_else(|| self.fault(path, NOT_A_DIRECTORY))?;
            if name == b".." {
                at = directory.parent;
                continue;
            }
            let id = directory.entries.get(name).copied();
            let id = id.ok_or_else(|| self.fault(path, "does not exist"))?;
            match &self.tree.inode(id).kind {
                Kind::Symlink(target)
                    if links == Links::Follow || wants_directory || !rest.is_empty() =>
                {
                    hops += 1;
                    if hops > MAX_LINK_HOPS {
                        return Err(self.fault(path, "goes through too many symbolic links"));
                    }
                    if target.starts_with(b"/") {
                        at = Tree::ROOT;
                    }
                    components(target).rev().for_each(|name| rest.push_front(name));
                }
                _ => at = id,
            }
        }
        if wants_directory && self.tree.directory(at).is_none() {
            return Err(self.fault(path, NOT_A_DIRECTORY));
        }
        Ok(at)
    }

    fn stat_of(&self, id: InodeId) -> FileStat {
        let inode = self.tree.inode(id);
        let modified = inode.attributes.modified;
        let seconds = Duration::from_secs(modified.seconds.unsigned_abs());
        let base = match modified.seconds {
            0.. => SystemTime::UNIX_EPOCH.checked_add(seconds),
            _ => SystemTime::UNIX_EPOCH.checked_sub(seconds),
        };
        let base = base.unwrap_or(SystemTime::UNIX_EPOCH);
        let nanoseconds = Duration::from_nanos(modified.nanoseconds.into());
        let xattrs = inode.xattrs.iter();
        FileStat {
            kind: kind(inode),
            permissions: inode.attributes.permissions,
            uid: inode.attributes.uid,
            gid: inode.attributes.gid,
            size_bytes: match &inode.kind {
                Kind::File(data) => data.size,
                Kind::Symlink(target) => target.len() as u64,
                _ => 0,
            },
            modified: base.checked_add(nanoseconds).unwrap_or(base),
            xattrs: xattrs
                .map(|xattr| (OsString::from_vec(xattr.name.to_vec()), xattr.value.to_vec()))
                .collect(),
        }
    }

    fn fault(&self, path: &Path, reason: &'static str) -> Error {
        Error::NoSuchFile { image: self.image.clone(), path: path.to_owned(), reason }
    }
}

/// The bytes of one file of an image. Independent of the [`ImageFiles`] it came from.
#[derive(Debug)]
pub struct FileReader {
    file: File,
    offset: u64,
    left: u64,
}

impl FileReader {
    /// Bytes that are left to read.
    pub fn remaining_bytes(&self) -> u64 {
        self.left
    }
}

impl Read for FileReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let limit = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..limit], self.offset)?;
        if count == 0 && limit > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

fn kind(inode: &Inode) -> FileKind {
    match &inode.kind {
        Kind::BlockDevice(device) => {
            FileKind::BlockDevice { major: device.major, minor: device.minor }
        }
        Kind::CharDevice(device) => {
            FileKind::CharDevice { major: device.major, minor: device.minor }
        }
        Kind::Directory(_) => FileKind::Directory,
        Kind::Fifo => FileKind::Fifo,
        Kind::File(_) | Kind::LinkBelow(_) => FileKind::File,
        Kind::Socket => FileKind::Socket,
        Kind::Symlink(target) => {
            FileKind::Symlink { target: OsString::from_vec(target.to_vec()).into() }
        }
        // In a merged tree there is none; on disk it is this device.
        Kind::Whiteout => FileKind::CharDevice { major: 0, minor: 0 },
    }
}
