//! Files from a tar stream that may come from an enemy.
//!
//! Every name is resolved by the kernel below one directory (`openat2`, `RESOLVE_BENEATH`): neither
//! `..` nor a link that the stream itself made leads out of it. Files appear whole. Whatever but a
//! directory has a member's name is replaced; directories are merged with those that are there, and
//! get their modes and times at the end, when nothing is written into them any more.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    rc::Rc,
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT,
        Uid, XattrFlags,
    },
    io::Errno,
};

use crate::{
    error::{Error, Refusal, Result},
    members::{Member, Members},
    new_file::{NewFile, c_string, replace_symlink},
    write::{Attributes, Extent, Kind},
};

/// How to unpack.
#[derive(Debug, Clone)]
pub struct Unpack {
    /// Every member is this one or lies below it; none: any name.
    pub only: Option<OsString>,
    /// Whose the files are.
    pub owners: Owners,
}

/// Whose unpacked files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Whose the stream says, with set-id bits and all attributes; devices are made.
    Stream,
    /// This process's. Set-id bits are not taken; devices are refused.
    Process,
}

/// Bytes written at once.
const PIECE: usize = 128 << 10;

/// Files up to this length are read before they are made.
const SMALL: u64 = PIECE as u64;

/// Mode of a directory until its own is set, and for good where the stream names none.
const NEW_DIRECTORY: u32 = 0o755;

/// Makes files of the tar stream `input` in `directory`, which is there.
///
/// # Errors
/// [`Error::Malformed`], [`Error::Refused`], [`Error::File`], [`Error::Read`]. What was unpacked
/// before stays.
pub fn unpack(input: impl Read, directory: &Path, how: &Unpack) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, directory, flags, Mode::empty());
    let root = root.map_err(Error::file("open", directory))?;
    // Below the real root every link stays inside anyway, and absolute ones are common there.
    let is_root = directory.canonicalize().is_ok_and(|path| path == Path::new("/"));
    let resolve = if is_root { ResolveFlags::IN_ROOT } else { ResolveFlags::BENEATH };
    let mut unpacker = Unpacker {
        root,
        directory,
        how,
        resolve: resolve | ResolveFlags::NO_MAGICLINKS,
        parent: None,
        directories: Vec::new(),
        buffer: vec![0; PIECE],
    };
    // Headers are read one by one, and a system call for each would cost more than its file.
    let mut members = Members::new(BufReader::with_capacity(PIECE, input));
    while let Some(member) = members.next()? {
        unpacker.member(&mut members, member)?;
    }
    unpacker.finish()
}

struct Unpacker<'a> {
    root: OwnedFd,
    /// For errors.
    directory: &'a Path,
    how: &'a Unpack,
    resolve: ResolveFlags,
    /// The directory that was written to last; most members lie beside the one before.
    parent: Option<(PathBuf, Rc<OwnedFd>)>,
    /// Directories that still need their attributes.
    directories: Vec<(PathBuf, Attributes)>,
    buffer: Vec<u8>,
}

/// A file's length, where it has data, and what belongs to it.
struct Contents {
    size: u64,
    extents: Option<Vec<Extent>>,
    attributes: Attributes,
}

impl Unpacker<'_> {
    fn member<R: Read>(&mut self, members: &mut Members<R>, member: Member) -> Result<()> {
        let Member { path, kind, attributes } = member;
        let place = self.place(&path)?;
        let Some(name) = place.file_name().map(OsStr::to_owned) else {
            // The directory itself, which is there and stays as it is.
            return match kind {
                Kind::Directory => Ok(()),
                _ => Err(Error::Refused { path, refusal: Refusal::Outside }),
            };
        };
        let parent = self.parent_of(&place)?;
        let shown = self.directory.join(&place);
        let made = match kind {
            Kind::File { size, extents } => {
                let contents = Contents { size, extents, attributes };
                return self.file(members, &parent, &place, &contents);
            }
            Kind::Directory => self.make_directory(&parent, &place, attributes),
            Kind::Symlink(target) => self.symlink(&parent, &name, &target, &attributes),
            Kind::HardLink(target) => {
                return self.hard_link(&parent, &place, Path::new(OsStr::from_bytes(&target)));
            }
            Kind::CharDevice(..) | Kind::BlockDevice(..) | Kind::Fifo
                if self.how.owners == Owners::Process =>
            {
                return Err(Error::Refused { path, refusal: Refusal::Special });
            }
            special => self.special(&parent, &name, &special, &attributes),
        };
        made.map_err(Error::file("make", shown))
    }

    /// Where a member goes, below the directory.
    fn place(&self, path: &Path) -> Result<PathBuf> {
        let refused = |refusal| Error::Refused { path: path.to_owned(), refusal };
        let mut place = PathBuf::new();
        for component in path.components() {
            match component {
                Component::CurDir => {}
                Component::Normal(name) => place.push(name),
                Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                    return Err(refused(Refusal::Outside));
                }
            }
        }
        match &self.how.only {
            Some(only) if !place.starts_with(only) => Err(refused(Refusal::OtherName)),
            _ => Ok(place),
        }
    }

    /// The directory that `place` is in, made if it is not there.
    fn parent_of(&mut self, place: &Path) -> Result<Rc<OwnedFd>> {
        let parent = place.parent().unwrap_or_else(|| Path::new(""));
        if let Some((known, fd)) = &self.parent
            && known == parent
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open_directory(parent) {
            Err(Errno::NOENT) => {
                let above = self.parent_of(parent)?;
                let name = c_string(parent.file_name().unwrap_or_default());
                let name = name.map_err(Error::file("make", parent))?;
                let mode = Mode::from_raw_mode(NEW_DIRECTORY);
                match rustix::fs::mkdirat(&above, &name, mode) {
                    Ok(()) | Err(Errno::EXIST) => self.open_directory(parent),
                    Err(errno) => Err(errno),
                }
            }
            opened => opened,
        };
        let shown = self.directory.join(parent);
        let fd = fd.map_err(|errno| match errno {
            Errno::XDEV | Errno::LOOP => {
                Error::Refused { path: place.to_owned(), refusal: Refusal::Outside }
            }
            errno => Error::errno("open", &shown, errno),
        })?;
        let fd = Rc::new(fd);
        self.parent = Some((parent.to_owned(), Rc::clone(&fd)));
        Ok(fd)
    }

    fn open_directory(&self, path: &Path) -> std::result::Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(&self.root, path, flags, Mode::empty(), self.resolve)
    }

    fn file<R: Read>(
        &mut self,
        members: &mut Members<R>,
        parent: &OwnedFd,
        place: &Path,
        contents: &Contents,
    ) -> Result<()> {
        let Contents { size, extents, attributes } = contents;
        let shown = self.directory.join(place);
        let failed = |action| Error::file(action, &shown);
        let name = place.file_name().unwrap_or_default();
        if extents.is_none() && *size <= SMALL {
            let size = usize::try_from(*size).expect("it is small");
            self.whole(members, size)?;
            let mode = Mode::from_raw_mode(attributes.mode & 0o777);
            let new = NewFile::create_at(parent.as_fd(), name, mode);
            let mut new = new.map_err(failed("make"))?;
            new.file().write_all(&self.buffer[..size]).map_err(Error::file("write", &shown))?;
            let given = self.give_new(new.file(), attributes);
            given.map_err(Error::file("set attributes of", &shown))?;
            return new.publish(name).map_err(failed("make"));
        }
        let mut new = NewFile::create(parent.as_fd()).map_err(failed("make"))?;
        let whole = [Extent { offset: 0, len: *size }];
        for extent in extents.as_deref().unwrap_or(&whole) {
            if extents.is_some() {
                let start = SeekFrom::Start(extent.offset);
                new.file().seek(start).map_err(Error::file("write", &shown))?;
            }
            self.data(members, new.file(), extent.len, &shown)?;
        }
        if extents.is_some() {
            new.file().set_len(*size).map_err(Error::file("write", &shown))?;
        }
        let given = self.give(new.file(), attributes);
        given.map_err(Error::file("set attributes of", &shown))?;
        new.publish(name).map_err(failed("make"))
    }

    /// Reads all data of a small member into the buffer.
    fn whole<R: Read>(&mut self, members: &mut Members<R>, size: usize) -> Result<()> {
        let mut filled = 0;
        while filled < size {
            filled += members.read_data(&mut self.buffer[filled..size])?;
        }
        Ok(())
    }

    fn data<R: Read>(
        &mut self,
        members: &mut Members<R>,
        file: &mut File,
        mut len: u64,
        shown: &Path,
    ) -> Result<()> {
        while len > 0 {
            let most = usize::try_from(len).unwrap_or(usize::MAX).min(PIECE);
            let read = members.read_data(&mut self.buffer[..most])?;
            file.write_all(&self.buffer[..read]).map_err(Error::file("write", shown))?;
            len -= read as u64;
        }
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &OwnedFd,
        place: &Path,
        attributes: Attributes,
    ) -> io::Result<()> {
        let name = c_string(place.file_name().unwrap_or_default())?;
        match rustix::fs::mkdirat(parent, &name, Mode::RWXU) {
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(parent, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {}
                    // A link to a directory below here stands for it and stays as it is.
                    FileType::Symlink => {
                        self.open_directory(place)?;
                        return Ok(());
                    }
                    _ => return Err(Errno::NOTDIR.into()),
                }
            }
            made => made?,
        }
        self.directories.push((place.to_owned(), attributes));
        Ok(())
    }

    fn symlink(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        target: &[u8],
        attributes: &Attributes,
    ) -> io::Result<()> {
        let (name, target) = (c_string(name)?, CString::new(target)?);
        replace_symlink(parent.as_fd(), &target, &name)?;
        self.give_name(parent.as_fd(), &name, attributes)
    }

    fn hard_link(&mut self, parent: &OwnedFd, place: &Path, target: &Path) -> Result<()> {
        let shown = self.directory.join(place);
        let from = self.place(target)?;
        let from_parent = self.parent_of(&from)?;
        let link = || {
            let from = c_string(from.file_name().unwrap_or_default())?;
            let to = c_string(place.file_name().unwrap_or_default())?;
            let link = || rustix::fs::linkat(&from_parent, &from, parent, &to, AtFlags::empty());
            match link() {
                Err(Errno::EXIST) => {
                    rustix::fs::unlinkat(parent, &to, AtFlags::empty())?;
                    link()
                }
                done => done,
            }
        };
        link().map_err(Error::file("link", shown))
    }

    fn special(
        &self,
        parent: &OwnedFd,
        name: &OsStr,
        kind: &Kind,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let name = c_string(name)?;
        let (file_type, device) = match *kind {
            Kind::CharDevice(major, minor) => {
                (FileType::CharacterDevice, rustix::fs::makedev(major, minor))
            }
            Kind::BlockDevice(major, minor) => {
                (FileType::BlockDevice, rustix::fs::makedev(major, minor))
            }
            _ => (FileType::Fifo, 0),
        };
        let make = || rustix::fs::mknodat(parent, &name, file_type, Mode::RUSR, device);
        match make() {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(parent, &name, AtFlags::empty())?;
                make()?;
            }
            made => made?,
        }
        self.give_name(parent.as_fd(), &name, attributes)?;
        let mode = Mode::from_raw_mode(attributes.mode);
        Ok(rustix::fs::chmodat(parent, &name, mode, AtFlags::empty())?)
    }

    /// As [`Unpacker::give`], for a file that was made as it is to be as far as possible: each change
    /// of an inode costs as much as making it.
    fn give_new(&self, file: &File, attributes: &Attributes) -> io::Result<()> {
        let stat = rustix::fs::fstat(file)?;
        let from_stream = self.how.owners == Owners::Stream;
        if from_stream && (stat.st_uid, stat.st_gid) != (attributes.uid, attributes.gid) {
            return self.give(file, attributes);
        }
        if stat.st_mode & 0o7777 != attributes.mode & self.mode_bits() {
            return self.give(file, attributes);
        }
        self.give_rest(file, attributes)
    }

    /// Sets everything of an open file or directory.
    fn give(&self, fd: impl AsFd, attributes: &Attributes) -> io::Result<()> {
        if self.how.owners == Owners::Stream {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::fchown(&fd, Some(uid), Some(gid))?;
        }
        let mode = Mode::from_raw_mode(attributes.mode & self.mode_bits());
        rustix::fs::fchmod(&fd, mode)?;
        self.give_rest(fd, attributes)
    }

    /// What of a member's mode is taken.
    fn mode_bits(&self) -> u32 {
        match self.how.owners {
            Owners::Stream => 0o7777,
            Owners::Process => 0o777,
        }
    }

    /// Sets what comes after owner and mode.
    fn give_rest(&self, fd: impl AsFd, attributes: &Attributes) -> io::Result<()> {
        let from_stream = self.how.owners == Owners::Stream;
        for (name, value) in &attributes.xattrs {
            if !from_stream && !name.starts_with(b"user.") {
                continue;
            }
            let name = CString::new(name.as_slice())?;
            match rustix::fs::fsetxattr(&fd, &name, value, XattrFlags::empty()) {
                // A file system that keeps none.
                Ok(()) | Err(Errno::OPNOTSUPP) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(rustix::fs::futimens(&fd, &times(attributes))?)
    }

    /// Sets owner and times of what cannot be opened.
    fn give_name(
        &self,
        parent: BorrowedFd<'_>,
        name: &CString,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        if self.how.owners == Owners::Stream {
            let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
            rustix::fs::chownat(parent, name, Some(uid), Some(gid), no_follow)?;
        }
        Ok(rustix::fs::utimensat(parent, name, &times(attributes), no_follow)?)
    }

    /// Gives directories their attributes, the deepest first.
    fn finish(self) -> Result<()> {
        for (place, attributes) in self.directories.iter().rev() {
            let given = self.open_directory(place).map_err(io::Error::from);
            given
                .and_then(|directory| self.give(&directory, attributes))
                .map_err(Error::file("set attributes of", self.directory.join(place)))?;
        }
        Ok(())
    }
}

fn times(attributes: &Attributes) -> Timestamps {
    let modified = attributes.modified;
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: modified.seconds,
            tv_nsec: modified.nanoseconds.into(),
        },
    }
}
