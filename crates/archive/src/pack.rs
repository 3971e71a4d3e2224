//! A file or a tree as a tar stream. Links are stored as links and never followed on the way.

use std::{
    collections::HashMap,
    ffi::{CStr, CString, OsStr},
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};

use crate::{
    error::{Error, Result},
    members::EXTENTS_MAX,
    new_file::c_string,
    write::{Attributes, Extent, Kind, MemberWriter, Time, Xattrs},
};

/// What to pack.
#[derive(Debug, Clone)]
pub struct Pack<'a> {
    /// A file or a directory.
    pub path: &'a Path,
    /// What it is called in the stream; empty: a directory's members stand at the top.
    pub name: &'a Path,
    /// Whether a link at the end of `path` stands for its target.
    pub follow: bool,
}

/// Bytes read at once; a pipe and a frame of the wire hold as many.
const PIECE: usize = 128 << 10;

/// Largest value of one extended attribute (`XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 << 10;

/// Writes a tar stream of `what`. Sockets are left out; what vanishes meanwhile was not there.
///
/// # Errors
/// [`Error::File`], [`Error::Changed`], [`Error::Write`]; the stream has no end then.
pub fn pack(output: impl Write, what: &Pack<'_>) -> Result<()> {
    pack_all(output, std::slice::from_ref(what))
}

/// As [`pack`], one after the other in one stream.
///
/// # Errors
/// As [`pack`].
pub fn pack_all(output: impl Write, what: &[Pack<'_>]) -> Result<()> {
    let output = io::BufWriter::with_capacity(PIECE, output);
    let writer = MemberWriter::new(output);
    let mut packer = Packer { writer, seen: HashMap::new(), buffer: vec![0; PIECE] };
    what.iter().try_for_each(|what| packer.top(what))?;
    packer.writer.finish()
}

struct Packer<W> {
    writer: MemberWriter<W>,
    /// Files with several names that were stored already, by device and number.
    seen: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
}

/// Something to be stored.
struct Node<'a> {
    directory: BorrowedFd<'a>,
    name: &'a CStr,
    /// For errors.
    path: &'a Path,
    stored: &'a Path,
}

impl Node<'_> {
    fn stat(&self, flags: AtFlags) -> Result<Stat> {
        rustix::fs::statat(self.directory, self.name, flags)
            .map_err(Error::file("look at", self.path))
    }

    fn open(&self, flags: OFlags) -> Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(self.directory, self.name, flags, Mode::empty())
            .map_err(Error::file("open", self.path))
    }
}

impl<W: Write> Packer<W> {
    fn top(&mut self, what: &Pack<'_>) -> Result<()> {
        let path = c_string(what.path.as_os_str()).map_err(Error::file("open", what.path))?;
        let node = Node { directory: CWD, name: &path, path: what.path, stored: what.name };
        let flags = if what.follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
        let stat = node.stat(flags)?;
        if what.name.as_os_str().is_empty()
            && FileType::from_raw_mode(stat.st_mode) != FileType::Directory
        {
            return Err(Error::errno("list", what.path, Errno::NOTDIR));
        }
        self.node(&node, &stat, what.follow)
    }

    fn node(&mut self, node: &Node<'_>, stat: &Stat, follow: bool) -> Result<()> {
        let no_follow = if follow { OFlags::empty() } else { OFlags::NOFOLLOW };
        let plain = |kind| (kind, attributes(stat, Vec::new()));
        let (kind, attributes) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                // Whatever has taken its place meanwhile must not make the opening wait.
                let file = node.open(no_follow | OFlags::NONBLOCK)?;
                return self.file(node, file.into());
            }
            FileType::Directory => {
                let directory = node.open(no_follow | OFlags::DIRECTORY)?;
                return self.directory(node, &directory);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(node.directory, node.name, Vec::new())
                    .map_err(Error::file("read the link", node.path))?;
                plain(Kind::Symlink(target.into_bytes()))
            }
            FileType::CharacterDevice => {
                let (major, minor) = device(stat);
                plain(Kind::CharDevice(major, minor))
            }
            FileType::BlockDevice => {
                let (major, minor) = device(stat);
                plain(Kind::BlockDevice(major, minor))
            }
            FileType::Fifo => plain(Kind::Fifo),
            // A socket means nothing without the process that listens on it.
            _ => return Ok(()),
        };
        self.writer.begin(node.stored, &kind, &attributes)
    }

    fn directory(&mut self, node: &Node<'_>, directory: &OwnedFd) -> Result<()> {
        let stat = rustix::fs::fstat(directory).map_err(Error::file("look at", node.path))?;
        let xattrs = xattrs(directory).map_err(Error::file("read attributes of", node.path))?;
        if !node.stored.as_os_str().is_empty() {
            self.writer.begin(node.stored, &Kind::Directory, &attributes(&stat, xattrs))?;
        }
        for name in names(directory).map_err(Error::file("list", node.path))? {
            let shown = OsStr::from_bytes(name.to_bytes());
            let (path, stored) = (node.path.join(shown), node.stored.join(shown));
            let child =
                Node { directory: directory.as_fd(), name: &name, path: &path, stored: &stored };
            let packed = child
                .stat(AtFlags::SYMLINK_NOFOLLOW)
                .and_then(|stat| self.node(&child, &stat, false));
            match packed {
                // It was there when the directory was listed.
                Err(Error::File { source, path: gone, .. })
                    if source.kind() == io::ErrorKind::NotFound && gone == path => {}
                packed => packed?,
            }
        }
        Ok(())
    }

    fn file(&mut self, node: &Node<'_>, mut file: File) -> Result<()> {
        let failed = |action| Error::file(action, node.path);
        let stat = rustix::fs::fstat(&file).map_err(failed("look at"))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::Changed { path: node.path.to_owned() });
        }
        if stat.st_nlink > 1 {
            let seen = self.seen.entry((stat.st_dev, stat.st_ino));
            match seen {
                std::collections::hash_map::Entry::Occupied(first) => {
                    let target = first.get().as_os_str().as_bytes().to_vec();
                    let attributes = attributes(&stat, Vec::new());
                    return self.writer.begin(node.stored, &Kind::HardLink(target), &attributes);
                }
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(node.stored.to_owned());
                }
            }
        }
        let xattrs = xattrs(&file).map_err(failed("read attributes of"))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let extents = extents(&file, &stat, size).map_err(failed("find the holes of"))?;
        let whole = [Extent { offset: 0, len: size }];
        let parts = extents.clone();
        let kind = Kind::File { size, extents };
        self.writer.begin(node.stored, &kind, &attributes(&stat, xattrs))?;
        let mut data_len = 0;
        for extent in parts.as_deref().unwrap_or(&whole) {
            if parts.is_some() {
                let start = SeekFrom::Start(extent.offset);
                file.seek(start).map_err(Error::file("read", node.path))?;
            }
            self.data(&mut file, extent.len, node.path)?;
            data_len += extent.len;
        }
        self.writer.end(data_len)
    }

    fn data(&mut self, file: &mut File, mut len: u64, path: &Path) -> Result<()> {
        while len > 0 {
            let most = usize::try_from(len).unwrap_or(usize::MAX).min(PIECE);
            match file.read(&mut self.buffer[..most]) {
                Ok(0) => return Err(Error::Changed { path: path.to_owned() }),
                Ok(read) => {
                    self.writer.bytes(&self.buffer[..read])?;
                    len -= read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::file("read", path)(error)),
            }
        }
        Ok(())
    }
}

fn attributes(stat: &Stat, xattrs: Xattrs) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        modified: Time {
            seconds: stat.st_mtime,
            nanoseconds: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        },
        xattrs,
    }
}

fn device(stat: &Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

/// Names in a directory, in order: the same tree gives the same stream.
fn names(directory: &OwnedFd) -> std::result::Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let name = entry?.file_name().to_owned();
        if ![c".", c".."].contains(&name.as_c_str()) {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The stretches of a file that have data; none when it has no holes worth telling.
fn extents(file: &File, stat: &Stat, size: u64) -> std::result::Result<Option<Vec<Extent>>, Errno> {
    // Counted in units of 512 bytes, whatever the file system's block is (`stat(2)`).
    let allocated = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
    if allocated >= size {
        return Ok(None);
    }
    let (mut extents, mut at) = (Vec::new(), 0);
    while at < size {
        let offset = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(offset) => offset,
            Err(Errno::NXIO) => break,
            // A file system that does not know.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(offset))?.min(size);
        if end <= offset || extents.len() + 1 >= EXTENTS_MAX {
            return rewound(file);
        }
        extents.push(Extent { offset, len: end - offset });
        at = end;
    }
    if extents.first() == Some(&Extent { offset: 0, len: size }) {
        return rewound(file);
    }
    if at < size || extents.is_empty() {
        // Readers find the length of a file that ends with a hole by an empty stretch there.
        extents.push(Extent { offset: size, len: 0 });
    }
    Ok(Some(extents))
}

fn rewound(file: &File) -> std::result::Result<Option<Vec<Extent>>, Errno> {
    rustix::fs::seek(file, rustix::fs::SeekFrom::Start(0)).map(|_| None)
}

/// Extended attributes; those that only this kernel's own layers understand are left out.
fn xattrs(fd: impl AsFd) -> std::result::Result<Xattrs, Errno> {
    let mut list = [0; 4096];
    let mut long = Vec::new();
    let list = match rustix::fs::flistxattr(&fd, &mut list[..]) {
        Ok(0) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(len) => &list[..len],
        Err(Errno::RANGE) => {
            long.resize(XATTR_MAX, 0);
            let len = rustix::fs::flistxattr(&fd, &mut long[..])?;
            &long[..len]
        }
        Err(errno) => return Err(errno),
    };
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.") || name == b"security.selinux" {
            continue;
        }
        let key = CString::new(name).map_err(|_| Errno::INVAL)?;
        let mut value = vec![0; XATTR_MAX];
        match rustix::fs::fgetxattr(&fd, &key, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                found.push((name.to_vec(), value));
            }
            // Removed meanwhile, or not for us.
            Err(Errno::NODATA | Errno::PERM | Errno::ACCESS) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(found)
}
