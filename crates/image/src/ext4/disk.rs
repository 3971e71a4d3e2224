//! Upper disks of stopped machines: reading and editing what is in `upper`, without a mount and without root.
//!
//! The bytes come from the `rust-fs-ext4` crate, which this module hides. What is written goes through the file
//! system's journal, so a crash leaves the old tree or the new one.
//!
//! Paths are those that the guest sees, below `upper`. They are bytes; symbolic links in them are not followed, because
//! what they lead to may lie in the image below.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fs_ext4::block_io::FileDevice;
use fs_ext4::{Error as Fault, Filesystem};

use crate::Error;
use crate::tree::components;

/// Number of the root directory's inode (ext4 documentation, "Special inodes").
const ROOT: u32 = 2;

/// Bytes read or written at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Name of a file while it is written, beside its final name.
const PARTIAL_NAME: &[u8] = b".microsandbox-partial";

/// An upper disk that no machine is using. Whoever opens it sees to that, for instance by the sandbox's lock.
pub struct UpperDisk {
    path: PathBuf,
    filesystem: Filesystem,
    /// Inode of `upper`.
    upper: u32,
}

impl std::fmt::Debug for UpperDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpperDisk").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What kind of thing a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpperKind {
    /// A block device.
    BlockDevice,
    /// A character device; with number 0:0 it is a whiteout, which removes what the image has.
    CharDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A file.
    File,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpperName {
    /// The name, which need not be UTF-8.
    pub name: OsString,
    /// What it stands for.
    pub kind: UpperKind,
}

/// What is known of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpperStat {
    /// What it stands for.
    pub kind: UpperKind,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Names that lead to it.
    pub links: u32,
    /// Modification time: seconds since the epoch, and nanoseconds.
    pub modified: (i64, u32),
}

/// Permissions and owner of what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpperOwner {
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl UpperDisk {
    /// Opens the disk at `path` to read it. The file is not changed, not even where a machine was killed and left a
    /// journal to be replayed.
    ///
    /// # Errors
    /// [`Error::Ext4`] when it cannot be read or is no upper disk.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::with(path, |path| Filesystem::mount(Arc::new(FileDevice::open_path(path)?)))
    }

    /// Opens the disk at `path` to change it, and replays its journal. Call [`Self::finish`] at the end.
    ///
    /// # Errors
    /// [`Error::Ext4`] when it cannot be written or is no upper disk.
    pub fn edit(path: &Path) -> Result<Self, Error> {
        Self::with(path, |path| {
            Filesystem::mount_recovering(Arc::new(FileDevice::open_path_rw(path)?))
        })
    }

    fn with(
        path: &Path,
        mount: impl FnOnce(&Path) -> Result<Filesystem, Fault>,
    ) -> Result<Self, Error> {
        let opened = mount(path).and_then(|filesystem| {
            let upper = filesystem.lookup_at(ROOT, b"upper")?;
            Ok((filesystem, upper))
        });
        let (filesystem, upper) = opened.map_err(|fault| ext4_error("open", path, "", fault))?;
        Ok(Self { path: path.to_owned(), filesystem, upper })
    }

    /// The names in a directory, in no order.
    ///
    /// # Errors
    /// [`Error::Ext4`]; its source is an [`io::Error`] that tells a missing name from other faults.
    pub fn list(&self, directory: impl AsRef<Path>) -> Result<Vec<UpperName>, Error> {
        let directory = directory.as_ref();
        let list = || -> Result<Vec<_>, Fault> {
            let entries = self.filesystem.read_dir_ino(self.find(directory)?)?;
            entries
                .into_iter()
                .filter(|entry| entry.name != b"." && entry.name != b"..")
                .map(|entry| {
                    let kind = kind(self.filesystem.stat_ino(entry.inode)?.file_type())?;
                    Ok(UpperName { name: OsString::from_vec(entry.name), kind })
                })
                .collect()
        };
        list().map_err(|fault| self.error("list", directory, fault))
    }

    /// What is known of a name.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`].
    pub fn stat(&self, path: impl AsRef<Path>) -> Result<UpperStat, Error> {
        let path = path.as_ref();
        let stat = || {
            let inode = self.filesystem.stat_ino(self.find(path)?)?;
            Ok(UpperStat {
                kind: kind(inode.file_type())?,
                mode: inode.mode & 0o7777,
                uid: inode.uid,
                gid: inode.gid,
                size_bytes: inode.size,
                links: inode.links_count.into(),
                modified: (inode.mtime, inode.mtime_nsec),
            })
        };
        stat().map_err(|fault| self.error("look at", path, fault))
    }

    /// Writes all of a file to `out`; answers with its size.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`]; also what `out` reports.
    pub fn read(&self, path: impl AsRef<Path>, out: &mut impl Write) -> Result<u64, Error> {
        let path = path.as_ref();
        let mut read = || {
            let inode = self.find(path)?;
            let mut buffer = vec![0; CHUNK_BYTES];
            let mut offset = 0;
            loop {
                match self.filesystem.read_ino(inode, offset, &mut buffer)? {
                    0 => return Ok(offset),
                    count => {
                        out.write_all(&buffer[..count])?;
                        offset += count as u64;
                    }
                }
            }
        };
        read().map_err(|fault| self.error("read", path, fault))
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`].
    pub fn read_link(&self, path: impl AsRef<Path>) -> Result<PathBuf, Error> {
        let path = path.as_ref();
        let target = self.find(path).and_then(|inode| self.filesystem.read_link_ino(inode));
        target
            .map(|target| OsString::from_vec(target).into())
            .map_err(|fault| self.error("read", path, fault))
    }

    /// Writes a file, in place of one that is there: whole, or not at all.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`]; also what `content` reports.
    pub fn write(
        &self,
        path: impl AsRef<Path>,
        owner: UpperOwner,
        content: &mut impl Read,
    ) -> Result<(), Error> {
        let path = path.as_ref();
        let mut write = || {
            let (parent, name) = self.parent(path)?;
            if let Ok(leftover) = self.filesystem.lookup_at(parent, PARTIAL_NAME) {
                tracing::debug!(leftover, "an earlier write was cut off");
                self.filesystem.apply_unlink_at(parent, PARTIAL_NAME)?;
            }
            let inode =
                self.filesystem.apply_create_at(parent, PARTIAL_NAME, owner.mode & 0o7777)?;
            let filled = self.fill(inode, owner, content).and_then(|()| {
                self.filesystem.apply_rename_at(parent, PARTIAL_NAME, parent, name, true)
            });
            if filled.is_err() {
                // The fault that is returned matters more; the next write takes the leftover away.
                let _ = self.filesystem.apply_unlink_at(parent, PARTIAL_NAME);
            }
            filled
        };
        write().map_err(|fault| self.error("write", path, fault))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`].
    pub fn make_directory(&self, path: impl AsRef<Path>, owner: UpperOwner) -> Result<(), Error> {
        let path = path.as_ref();
        let make = || {
            let (parent, name) = self.parent(path)?;
            let inode = self.filesystem.apply_mkdir_at(parent, name, owner.mode & 0o7777)?;
            self.filesystem.apply_chmod_ino(inode, owner.mode & 0o7777)?;
            self.filesystem.apply_chown_ino(inode, owner.uid, owner.gid)
        };
        make().map_err(|fault| self.error("make", path, fault))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`].
    pub fn make_link(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let target = target.as_ref().as_os_str().as_bytes();
        let make = || {
            let (parent, name) = self.parent(path)?;
            self.filesystem.apply_symlink_at(parent, name, target).map(drop)
        };
        make().map_err(|fault| self.error("make", path, fault))
    }

    /// Removes what the image has under this path: leaves a whiteout, in place of a file that is there.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`].
    pub fn white_out(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        const CHAR_DEVICE: u16 = 0o020_000;
        let path = path.as_ref();
        let make = || {
            let (parent, name) = self.parent(path)?;
            if self.filesystem.lookup_at(parent, name).is_ok() {
                self.filesystem.apply_unlink_at(parent, name)?;
            }
            self.filesystem.apply_mknod_at(parent, name, CHAR_DEVICE, 0, 0).map(drop)
        };
        make().map_err(|fault| self.error("remove", path, fault))
    }

    /// Removes a name from this disk, a directory with all it holds. What the image has there shows again.
    ///
    /// # Errors
    /// [`Error::Ext4`], as [`Self::list`]; part of a directory may be gone then.
    pub fn remove(&self, path: impl AsRef<Path>) -> Result<(), Error> {
        let path = path.as_ref();
        let remove = || {
            let (parent, name) = self.parent(path)?;
            self.remove_at(parent, name)
        };
        remove().map_err(|fault| self.error("remove", path, fault))
    }

    /// Ends the changes: the disk is clean, and the host's disk has all of it.
    ///
    /// # Errors
    /// [`Error::Ext4`]; the journal has what was done, and the next user replays it.
    pub fn finish(self) -> Result<(), Error> {
        let Self { path, filesystem, .. } = self;
        filesystem
            .finish()
            .and_then(|()| Ok(std::fs::File::open(&path)?.sync_all()?))
            .map_err(|fault| ext4_error("finish", &path, "", fault))
    }

    fn fill(&self, inode: u32, owner: UpperOwner, content: &mut impl Read) -> Result<(), Fault> {
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        let mut offset = 0;
        while content.take(CHUNK_BYTES as u64).read_to_end(&mut chunk)? > 0 {
            self.filesystem.apply_pwrite_ino(inode, offset, &chunk)?;
            offset += chunk.len() as u64;
            chunk.clear();
        }
        self.filesystem.apply_chown_ino(inode, owner.uid, owner.gid)?;
        // After the owner, whose change would take setuid away.
        self.filesystem.apply_chmod_ino(inode, owner.mode & 0o7777)
    }

    /// Removes without recursion: how deep a guest has nested its directories must not matter.
    fn remove_at(&self, parent: u32, name: &[u8]) -> Result<(), Fault> {
        let mut path = vec![(parent, name.to_vec())];
        while let Some((parent, name)) = path.last().cloned() {
            let inode = self.filesystem.lookup_at(parent, &name)?;
            if !self.filesystem.stat_ino(inode)?.is_dir() {
                self.filesystem.apply_unlink_at(parent, &name)?;
                path.pop();
                continue;
            }
            let entries = self.filesystem.read_dir_ino(inode)?;
            let inner = entries.into_iter().map(|entry| entry.name);
            let before = path.len();
            path.extend(
                inner.filter(|name| name != b"." && name != b"..").map(|name| (inode, name)),
            );
            if path.len() == before {
                self.filesystem.apply_rmdir_at(parent, &name)?;
                path.pop();
            }
        }
        Ok(())
    }

    fn find(&self, path: &Path) -> Result<u32, Fault> {
        names(path)?
            .into_iter()
            .try_fold(self.upper, |at, name| self.filesystem.lookup_at(at, name))
    }

    /// The directory that holds `path`, and its name there.
    fn parent<'p>(&self, path: &'p Path) -> Result<(u32, &'p [u8]), Fault> {
        let names = names(path)?;
        let (name, parents) =
            names.split_last().ok_or(Fault::InvalidArgument("the root cannot be changed"))?;
        let parent =
            parents.iter().try_fold(self.upper, |at, name| self.filesystem.lookup_at(at, name))?;
        Ok((parent, name))
    }

    fn error(&self, action: &'static str, entry: &Path, fault: Fault) -> Error {
        ext4_error(action, &self.path, entry, fault)
    }
}

/// The names in a path; `..` is refused, as it would mean something else where links are followed.
fn names(path: &Path) -> Result<Vec<&[u8]>, Fault> {
    let names: Vec<&[u8]> = components(path.as_os_str().as_bytes()).collect();
    match names.iter().any(|name| *name == b"..") {
        true => Err(Fault::InvalidArgument("a path has `..` in it")),
        false => Ok(names),
    }
}

/// The kind behind the type bits of a mode (`inode(7)`).
fn kind(file_type: u16) -> Result<UpperKind, Fault> {
    Ok(match file_type {
        0o010_000 => UpperKind::Fifo,
        0o020_000 => UpperKind::CharDevice,
        0o040_000 => UpperKind::Directory,
        0o060_000 => UpperKind::BlockDevice,
        0o100_000 => UpperKind::File,
        0o120_000 => UpperKind::Symlink,
        0o140_000 => UpperKind::Socket,
        _ => return Err(Fault::Corrupt("an inode has no type")),
    })
}

fn ext4_error(action: &'static str, disk: &Path, entry: impl AsRef<Path>, fault: Fault) -> Error {
    let kind = match &fault {
        Fault::AlreadyExists => io::ErrorKind::AlreadyExists,
        Fault::DirectoryNotEmpty => io::ErrorKind::DirectoryNotEmpty,
        Fault::InvalidArgument(_) | Fault::NameTooLong => io::ErrorKind::InvalidInput,
        Fault::IsADirectory => io::ErrorKind::IsADirectory,
        Fault::NoSpaceLeftOnDevice => io::ErrorKind::StorageFull,
        Fault::NotADirectory => io::ErrorKind::NotADirectory,
        Fault::NotFound => io::ErrorKind::NotFound,
        Fault::ReadOnly => io::ErrorKind::ReadOnlyFilesystem,
        Fault::Io(source) => source.kind(),
        _ => io::ErrorKind::InvalidData,
    };
    Error::Ext4 {
        action,
        disk: disk.to_owned(),
        entry: entry.as_ref().to_owned(),
        source: io::Error::new(kind, fault),
    }
}
