//! A file that appears under its name whole, or not at all.
//!
//! Until it is published it has no name where the file system allows that (`O_TMPFILE`): a process
//! that is killed meanwhile leaves nothing. Elsewhere it has a hidden name, which a guard removes.

use std::{
    ffi::{CStr, CString, OsStr},
    fs::File,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};

/// A file without its name yet. Dropping it leaves nothing.
#[derive(Debug)]
#[must_use]
pub struct NewFile<'a> {
    directory: BorrowedFd<'a>,
    file: File,
    hidden: Option<HiddenName<'a>>,
}

/// What hidden names begin with.
const PREFIX: &str = ".msb-new-";

/// Names tried before the directory is given up.
const ATTEMPTS: u32 = 1000;

impl<'a> NewFile<'a> {
    /// Makes one in `directory`, readable and writable for its owner.
    ///
    /// # Errors
    /// What the kernel reported.
    pub fn create(directory: BorrowedFd<'a>) -> Result<Self, Errno> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, c".", flags, mode) {
            Ok(fd) => return Ok(Self { directory, file: fd.into(), hidden: None }),
            // Those of the file systems that cannot, and of kernels that do not know the flag.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        Self::create_hidden(directory, mode)
    }

    fn create_hidden(directory: BorrowedFd<'a>, mode: Mode) -> Result<Self, Errno> {
        let make = |name: &CStr| create_exclusive(directory, name, mode);
        let (hidden, fd) = HiddenName::find(directory, make)?;
        Ok(Self { directory, file: fd.into(), hidden: Some(hidden) })
    }

    /// Makes one for bytes that are all at hand: under `name` where that is free, else under a hidden
    /// name, which is several times faster than none in an overlay. Dropping it before it is
    /// published removes it; a kill in that moment does not. It has what the process's mask leaves of
    /// `mode`.
    ///
    /// # Errors
    /// What the kernel reported.
    pub(crate) fn create_at(
        directory: BorrowedFd<'a>,
        name: &OsStr,
        mode: Mode,
    ) -> Result<Self, Errno> {
        let name = c_string(name)?;
        match create_exclusive(directory, &name, mode) {
            Err(Errno::EXIST) => Self::create_hidden(directory, mode),
            made => {
                let file = made?.into();
                let hidden = HiddenName { directory, name: Some(name) };
                Ok(Self { directory, file, hidden: Some(hidden) })
            }
        }
    }

    /// The file, to write to and to give attributes.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Gives it its name, in place of whatever but a directory has that name.
    ///
    /// # Errors
    /// What the kernel reported; nothing is left then.
    pub fn publish(self, name: &OsStr) -> Result<(), Errno> {
        let name = c_string(name)?;
        if let Some(hidden) = self.hidden {
            return hidden.rename_to(&name);
        }
        // The name of an open file, for those without the right to link one by its number.
        let own = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(|_| Errno::INVAL)?;
        let link =
            |to: &CStr| rustix::fs::linkat(CWD, &own, self.directory, to, AtFlags::SYMLINK_FOLLOW);
        match link(&name) {
            Err(Errno::EXIST) => {}
            done => return done,
        }
        let (hidden, ()) = HiddenName::find(self.directory, link)?;
        hidden.rename_to(&name)
    }
}

fn create_exclusive(directory: BorrowedFd<'_>, name: &CStr, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let flags = flags | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, mode)
}

/// Makes a symbolic link, in place of whatever but a directory has that name.
///
/// # Errors
/// What the kernel reported; nothing is left then.
pub(crate) fn replace_symlink(
    directory: BorrowedFd<'_>,
    target: &CStr,
    name: &CStr,
) -> Result<(), Errno> {
    match rustix::fs::symlinkat(target, directory, name) {
        Err(Errno::EXIST) => {}
        done => return done,
    }
    let (hidden, ()) =
        HiddenName::find(directory, |hidden| rustix::fs::symlinkat(target, directory, hidden))?;
    hidden.rename_to(name)
}

/// A name that nobody looks for, removed when dropped.
#[derive(Debug)]
struct HiddenName<'a> {
    directory: BorrowedFd<'a>,
    name: Option<CString>,
}

impl<'a> HiddenName<'a> {
    /// Makes something under a name that is free.
    fn find<T>(
        directory: BorrowedFd<'a>,
        mut make: impl FnMut(&CStr) -> Result<T, Errno>,
    ) -> Result<(Self, T), Errno> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let process = rustix::process::getpid().as_raw_nonzero();
        for _ in 0..ATTEMPTS {
            let turn = NEXT.fetch_add(1, Ordering::Relaxed);
            let name =
                CString::new(format!("{PREFIX}{process}-{turn}")).map_err(|_| Errno::INVAL)?;
            match make(&name) {
                Err(Errno::EXIST) => {}
                Ok(made) => return Ok((Self { directory, name: Some(name) }, made)),
                Err(errno) => return Err(errno),
            }
        }
        Err(Errno::EXIST)
    }

    fn rename_to(mut self, name: &CStr) -> Result<(), Errno> {
        if let Some(hidden) = self.name.as_deref().filter(|hidden| *hidden != name) {
            rustix::fs::renameat(self.directory, hidden, self.directory, name)?;
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for HiddenName<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // Whoever removed it meanwhile did what was to be done.
            let _gone =
                rustix::fs::unlinkat(self.directory.as_fd(), name.as_c_str(), AtFlags::empty());
        }
    }
}

/// A name for the kernel.
///
/// # Errors
/// `EINVAL` for one with a NUL byte.
pub(crate) fn c_string(name: &OsStr) -> Result<CString, Errno> {
    CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write as _, path::Path};

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_file_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let directory = File::open(folder.path()).unwrap();
        let mut dropped = NewFile::create(directory.as_fd()).unwrap();
        dropped.file().write_all(b"half").unwrap();
        drop(dropped);
        assert!(names(folder.path()).is_empty());
        for text in ["first", "second"] {
            let mut new = NewFile::create(directory.as_fd()).unwrap();
            new.file().write_all(text.as_bytes()).unwrap();
            new.publish(OsStr::new("f")).unwrap();
            assert_eq!(names(folder.path()), ["f"]);
            assert_eq!(fs::read_to_string(folder.path().join("f")).unwrap(), text);
        }
    }

    #[test]
    fn a_directory_is_not_replaced_and_nothing_is_left() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("d")).unwrap();
        let directory = File::open(folder.path()).unwrap();
        let new = NewFile::create(directory.as_fd()).unwrap();
        assert_eq!(new.publish(OsStr::new("d")), Err(Errno::ISDIR));
        assert_eq!(names(folder.path()), ["d"]);
    }
}
