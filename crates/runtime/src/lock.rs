//! The lock of a sandbox: whoever holds it is alive, and nobody else touches the sandbox.
//!
//! An open-file-description lock (`fcntl(2)`, `F_OFD_SETLK`): it belongs to the open file, so it
//! passes to the supervisor with the descriptor and the kernel frees it however that process ends.
//! It can also be asked after without taking it, so that readers disturb nobody.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
};

use crate::{Error, Result};

/// The held lock of one sandbox; dropping the last descriptor frees it.
#[derive(Debug)]
pub struct SandboxLock {
    file: File,
}

impl SandboxLock {
    /// Takes the lock at `path`, making the file where it is missing.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process holds it, [`Error::File`] otherwise.
    pub fn acquire(path: &Path) -> Result<Self> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path)
                .map_err(Error::file("open the lock", path))?;
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    if holds(&file).map_err(Error::file("ask after the lock", path))? {
                        return Err(Error::Locked { path: path.to_owned() });
                    }
                    // One who has waited until it is free holds a share of it for an instant.
                    std::thread::yield_now();
                    continue;
                }
                Err(errno) => return Err(Error::file("lock", path)(errno.into())),
            }
            // A sandbox removed between the two calls took this file with it: the lock of an
            // unlinked file protects nothing.
            if same_file(&file, path).map_err(Error::file("inspect the lock", path))? {
                return Ok(Self { file });
            }
        }
    }

    /// Whether some process holds the lock at `path`. A missing file is not held.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be opened for another reason than its absence.
    pub fn is_held(path: &Path) -> Result<bool> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(source) => return Err(Error::file("open the lock", path)(source)),
        };
        holds(&file).map_err(Error::file("ask after the lock", path))
    }

    /// Returns once no process holds the lock at `path`. Changes nothing; blocks until then.
    ///
    /// # Errors
    /// [`Error::File`] when the file cannot be opened for another reason than its absence.
    pub fn wait_until_free(path: &Path) -> Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::file("open the lock", path)(source)),
        };
        loop {
            // A shared lock needs no right to write; closing the file gives it back.
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&whole_file(libc::F_RDLCK))) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::file("wait for the lock", path)(errno.into())),
            }
        }
    }

    /// Keeps hold of which lock this is without holding it.
    ///
    /// # Errors
    /// [`Error::File`] when the lock has been removed.
    pub fn mark(&self, path: &Path) -> Result<LockMark> {
        let file = File::open(path).map_err(Error::file("open the lock", path))?;
        Ok(LockMark { file })
    }

    /// Takes over a lock that another process sent, if it is the one at `path`.
    pub(crate) fn from_fd(fd: OwnedFd, path: &Path) -> io::Result<Self> {
        let file = File::from(fd);
        if !same_file(&file, path)? {
            return Err(io::Error::other(format!("what came is not the lock {}", path.display())));
        }
        Ok(Self { file })
    }
}

/// Says which lock was held. While it lives no other lock can be taken for that one: the file's number
/// is not given out again.
#[derive(Debug)]
pub struct LockMark {
    file: File,
}

impl LockMark {
    /// Takes that lock again, at `path`, once its holder lets go of it. `None` when it has been removed
    /// meanwhile, whatever is at `path` now. Blocks until then.
    ///
    /// # Errors
    /// [`Error::File`].
    pub(crate) fn acquire_when_free(&self, path: &Path) -> Result<Option<SandboxLock>> {
        let is_ours = |file: &File| match (self.file.metadata(), file.metadata()) {
            (Ok(ours), Ok(found)) => (ours.dev(), ours.ino()) == (found.dev(), found.ino()),
            _ => false,
        };
        loop {
            let file = match File::options().read(true).write(true).open(path) {
                Ok(file) if is_ours(&file) => file,
                Ok(_) => return Ok(None),
                Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(Error::file("open the lock", path)(source)),
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLKW(&whole_file(libc::F_WRLCK))) {
                Ok(_) => {}
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(Error::file("lock", path)(errno.into())),
            }
            // Its holder may have removed it and let go then.
            if same_file(&file, path).unwrap_or(false) {
                return Ok(Some(SandboxLock { file }));
            }
        }
    }
}

impl AsFd for SandboxLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Whether somebody has the lock of that file for itself.
fn holds(file: &File) -> io::Result<bool> {
    let mut asked = whole_file(libc::F_RDLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut asked))?;
    Ok(i32::from(asked.l_type) != libc::F_UNLCK)
}

fn whole_file(kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).expect("lock types are small constants"),
        l_whence: i16::try_from(libc::SEEK_SET).expect("SEEK_SET is 0"),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.metadata() {
        Ok(named) => Ok((ours.dev(), ours.ino()) == (named.dev(), named.ino())),
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            // The directory itself may be gone; then opening fails next time and says so.
            let parent: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
            parent.metadata().map(|_| false)
        }
        Err(source) => Err(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_is_held_until_its_last_descriptor_closes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!SandboxLock::is_held(&path).unwrap());
        let lock = SandboxLock::acquire(&path).unwrap();
        assert!(SandboxLock::is_held(&path).unwrap());
        assert!(matches!(SandboxLock::acquire(&path), Err(Error::Locked { .. })));
        let copy = lock.as_fd().try_clone_to_owned().unwrap();
        drop(lock);
        assert!(SandboxLock::is_held(&path).unwrap());
        drop(copy);
        assert!(!SandboxLock::is_held(&path).unwrap());
    }

    #[test]
    fn waiting_ends_with_the_holder_and_keeps_nobody_from_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        SandboxLock::wait_until_free(&path).unwrap();
        let lock = SandboxLock::acquire(&path).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| SandboxLock::wait_until_free(&path));
            assert!(SandboxLock::is_held(&path).unwrap() && !waits.is_finished());
            drop(lock);
            for _ in 0..1000 {
                drop(SandboxLock::acquire(&path).unwrap());
            }
            waits.join().unwrap().unwrap();
        });
    }

    #[test]
    fn mark_finds_its_own_lock_again_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = SandboxLock::acquire(&path).unwrap();
        let mark = lock.mark(&path).unwrap();
        drop(lock);
        let again = mark.acquire_when_free(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        drop(again);
        assert!(mark.acquire_when_free(&path).unwrap().is_none());
        // Held by somebody else: it must not be waited for.
        let _other = SandboxLock::acquire(&path).unwrap();
        assert!(mark.acquire_when_free(&path).unwrap().is_none());
    }
}
