//! A guest that travels in a program, and how it gets onto disk.
//!
//! Files are looked at before they are used: their bytes once, and from then on whether anything
//! has written to them since. What is broken is replaced whole, in one step.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    fs::{CWD, RenameFlags, renameat_with},
    io::Errno,
};
use sha2::{Digest as _, Sha256};

use super::{Guest, GuestStore, INITRAMFS, KERNEL};
use crate::{Error, Result};

/// A guest in the program's own bytes.
#[derive(Debug, Clone, Copy)]
pub struct CarriedGuest {
    /// Its build id.
    pub build: &'static str,
    /// Uncompressed ELF kernel with a PVH entry.
    pub kernel: CarriedFile,
    /// newc archive with the agent as `/init`.
    pub initramfs: CarriedFile,
}

/// A file in the program's own bytes.
#[derive(Debug, Clone, Copy)]
pub struct CarriedFile {
    /// One zstd frame.
    pub packed: &'static [u8],
    /// Digest of what is in it.
    pub sha256: [u8; 32],
}

/// Says how the files were when their bytes were last looked at.
const VERIFIED: &str = "verified";

/// How directories are called while they are filled.
const PARTIAL: &str = ".new-";

/// Enough to keep the number of system calls low.
const BUFFER_BYTES: usize = 128 << 10;

impl GuestStore {
    /// The guest that this program carries, unpacked where it is not there or broken. Blocks for
    /// some tens of milliseconds the first time.
    ///
    /// # Errors
    /// [`Error::File`] and [`Error::CarriedGuest`]; then nothing new is left behind.
    pub fn unpack(&self, carried: &CarriedGuest) -> Result<Guest> {
        let build = self.dir.join(carried.build);
        if !is_intact(&build, carried) {
            self.install(&build, carried)?;
        }
        Ok(Guest::in_dir(&build))
    }

    fn install(&self, build: &Path, carried: &CarriedGuest) -> Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(Error::file("make the directory of guests", &self.dir))?;
        let work = Work::create_in(&self.dir)?;
        for (name, file) in [(KERNEL, &carried.kernel), (INITRAMFS, &carried.initramfs)] {
            unpack_file(&work.0.join(name), file)?;
        }
        note_verified(&work.0).map_err(Error::file("note the state of", &work.0))?;
        sync_dir(&work.0).map_err(Error::file("sync", &work.0))?;
        let published = match fs::rename(&work.0, build) {
            Err(error) if is_there(&error) => {
                if is_intact(build, carried) {
                    // Another process was faster.
                    return Ok(());
                }
                // In one step: a sandbox that is being started opens these files by name. The
                // broken build goes away with the work.
                renameat_with(CWD, &work.0, CWD, build, RenameFlags::EXCHANGE).map_err(Into::into)
            }
            renamed => renamed,
        };
        published
            .and_then(|()| sync_dir(&self.dir))
            .map_err(Error::file("publish the guest", build))
    }
}

/// Whether the build has the bytes that the program carries.
fn is_intact(build: &Path, carried: &CarriedGuest) -> bool {
    let Ok(state) = state_of(build) else { return false };
    if fs::read(build.join(VERIFIED)).is_ok_and(|noted| noted == state.as_bytes()) {
        return true;
    }
    let files = [(KERNEL, &carried.kernel), (INITRAMFS, &carried.initramfs)];
    let same = files
        .iter()
        .all(|(name, file)| digest_of(&build.join(name)).is_ok_and(|digest| digest == file.sha256));
    if same && let Err(error) = note_verified(build) {
        // The next start looks at the bytes again.
        tracing::debug!(build = %build.display(), %error, "could not note that a guest is intact");
    }
    same
}

/// What every write to the files of a build changes: no program can set a time of change.
fn state_of(build: &Path) -> io::Result<String> {
    let line = |name: &str| {
        let file = fs::metadata(build.join(name))?;
        let [modified, changed] =
            [(file.mtime(), file.mtime_nsec()), (file.ctime(), file.ctime_nsec())];
        Ok::<_, io::Error>(format!(
            "{name} inode {} bytes {} modified {}.{:09} changed {}.{:09}\n",
            file.ino(),
            Metadata::len(&file),
            modified.0,
            modified.1,
            changed.0,
            changed.1,
        ))
    };
    Ok(line(KERNEL)? + &line(INITRAMFS)?)
}

fn note_verified(build: &Path) -> io::Result<()> {
    let temporary = build.join(format!("{VERIFIED}.{}.new", std::process::id()));
    fs::write(&temporary, state_of(build)?)?;
    fs::rename(&temporary, build.join(VERIFIED))
}

fn digest_of(path: &Path) -> io::Result<[u8; 32]> {
    let mut digest = Digesting { digest: Sha256::new(), file: None };
    let mut file = io::BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
    io::copy(&mut file, &mut digest)?;
    Ok(digest.digest.finalize().into())
}

fn unpack_file(path: &Path, file: &CarriedFile) -> Result<()> {
    let unpack = || -> io::Result<[u8; 32]> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
        let mut target = Digesting { digest: Sha256::new(), file: Some(created) };
        zstd::stream::copy_decode(file.packed, &mut target)?;
        if let Some(created) = &target.file {
            created.sync_all()?;
        }
        Ok(target.digest.finalize().into())
    };
    if unpack().map_err(Error::file("unpack", path))? != file.sha256 {
        return Err(Error::CarriedGuest { path: path.to_owned() });
    }
    Ok(())
}

/// Digests what is written, on its way to a file if there is one.
struct Digesting {
    digest: Sha256,
    file: Option<File>,
}

impl Write for Digesting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.file {
            Some(file) => file.write(bytes)?,
            None => bytes.len(),
        };
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_there(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOTEMPTY | Errno::EXIST))
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A directory that is being filled, and goes away with everything in it unless it was published.
#[derive(Debug)]
struct Work(PathBuf);

impl Work {
    fn create_in(dir: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{PARTIAL}{}-{count}", std::process::id()));
        // Left by a process of the same number that was killed.
        let _not_there = fs::remove_dir_all(&path);
        fs::create_dir(&path).map_err(Error::file("make", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Gone already where it was published.
        let _published = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn carried(build: &'static str, kernel: &[u8]) -> CarriedGuest {
        let file = |content: &[u8]| CarriedFile {
            packed: zstd::encode_all(content, 1).unwrap().leak(),
            sha256: Sha256::digest(content).into(),
        };
        CarriedGuest { build, kernel: file(kernel), initramfs: file(b"agent") }
    }

    fn entries(dir: &Path) -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
        names.map(|name| name.into_string().unwrap()).collect()
    }

    #[test]
    fn a_guest_is_unpacked_once_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let store = GuestStore::at(home.path().join("guest"));
        let carried = carried("one", b"kernel");
        let guest = store.unpack(&carried).unwrap();
        assert_eq!(fs::read(&guest.kernel).unwrap(), b"kernel");
        assert_eq!(fs::read(&guest.initramfs).unwrap(), b"agent");
        let inode = fs::metadata(&guest.kernel).unwrap().ino();
        assert_eq!(store.unpack(&carried).unwrap(), guest);
        assert_eq!(fs::metadata(&guest.kernel).unwrap().ino(), inode);
        assert_eq!(entries(&home.path().join("guest")), ["one"]);
    }

    #[test]
    fn a_broken_guest_is_replaced_whole() {
        let home = tempfile::tempdir().unwrap();
        let store = GuestStore::at(home.path());
        let carried = carried("one", b"kernel");
        let guest = store.unpack(&carried).unwrap();
        let writable = |path: &Path| {
            fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
        };
        let breakages: [&dyn Fn(); 4] = [
            // As long as before, at the time of before: only the time of change tells.
            &|| {
                let before = fs::metadata(&guest.kernel).unwrap().modified().unwrap();
                writable(&guest.kernel);
                fs::write(&guest.kernel, b"KERNEL").unwrap();
                File::open(&guest.kernel).unwrap().set_modified(before).unwrap();
            },
            &|| {
                writable(&guest.initramfs);
                fs::write(&guest.initramfs, b"").unwrap();
            },
            &|| fs::remove_file(&guest.kernel).unwrap(),
            &|| fs::remove_dir_all(home.path().join("one")).unwrap(),
        ];
        for breakage in breakages {
            breakage();
            store.unpack(&carried).unwrap();
            assert_eq!(fs::read(&guest.kernel).unwrap(), b"kernel");
            assert_eq!(fs::read(&guest.initramfs).unwrap(), b"agent");
            assert_eq!(entries(home.path()), ["one"]);
        }
    }

    #[test]
    fn an_installed_build_of_the_same_bytes_is_used_as_it_is() {
        let home = tempfile::tempdir().unwrap();
        let build = home.path().join("one");
        fs::create_dir(&build).unwrap();
        fs::write(build.join(KERNEL), b"kernel").unwrap();
        fs::write(build.join(INITRAMFS), b"agent").unwrap();
        let inode = fs::metadata(build.join(KERNEL)).unwrap().ino();
        let guest = GuestStore::at(home.path()).unpack(&carried("one", b"kernel")).unwrap();
        assert_eq!(fs::metadata(guest.kernel).unwrap().ino(), inode);
        assert!(build.join(VERIFIED).exists(), "its bytes are not looked at again");
    }

    #[test]
    fn a_program_with_damaged_bytes_says_so_and_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let mut carried = carried("one", b"kernel");
        carried.kernel.sha256[0] ^= 1;
        let error = GuestStore::at(home.path()).unpack(&carried).unwrap_err();
        assert!(matches!(error, Error::CarriedGuest { .. }), "{error:?}");
        carried.initramfs.packed = b"no zstd";
        assert!(GuestStore::at(home.path()).unpack(&carried).is_err());
        assert_eq!(entries(home.path()), [""; 0]);
    }

    #[test]
    fn many_processes_at_once_end_with_one_intact_guest() {
        let home = tempfile::tempdir().unwrap();
        let carried = carried("one", &[7; 1 << 20]);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let guest = GuestStore::at(home.path()).unpack(&carried).unwrap();
                    assert_eq!(fs::metadata(guest.kernel).unwrap().len(), 1 << 20);
                });
            }
        });
        assert_eq!(entries(home.path()), ["one"]);
    }
}
