//! Writing files so that they are there whole or not at all.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Error;

/// Makes a directory and those above it, for the owner alone.
pub(super) fn create_directory(path: &Path) -> Result<(), Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| write_fault(path, source))
}

/// Replaces the file at `path`; after a crash it holds the old bytes or the new.
pub(super) fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let directory = path.parent().unwrap_or(path);
    create_directory(directory)?;
    let temporary = Temporary::new(directory);
    write_synced(&temporary.path, bytes)?;
    temporary.persist(path)
}

/// Writes a new file and waits until the disk has it.
pub(super) fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|source| write_fault(path, source))
}

/// Makes renames in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|source| write_fault(path, source))
}

/// The file's bytes, or `None` if there is no such file.
pub(crate) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(read_fault(path, source)),
    }
}

pub(super) fn read_fault(path: &Path, source: io::Error) -> Error {
    Error::ReadStore { path: path.to_owned(), source }
}

pub(super) fn write_fault(path: &Path, source: io::Error) -> Error {
    Error::WriteStore { path: path.to_owned(), source }
}

/// What temporary names start with; collections remove everything that does.
pub(super) const TEMPORARY_PREFIX: &str = ".new-";

/// A temporary name in a directory; what it names is removed unless it was given its final name.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) path: PathBuf,
}

impl Temporary {
    pub(super) fn new(directory: &Path) -> Self {
        Self { path: directory.join(unique_name()) }
    }

    /// Renames to `target`, durably.
    pub(super) fn persist(self, target: &Path) -> Result<(), Error> {
        fs::rename(&self.path, target).map_err(|source| write_fault(target, source))?;
        let directory = target.parent().unwrap_or(target);
        sync_directory(directory)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when it was persisted; what cannot be removed goes with the next collection.
        let _ = fs::remove_file(&self.path).or_else(|_| fs::remove_dir_all(&self.path));
    }
}

/// A name that no other process and no other thread uses at this time.
pub(super) fn unique_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // A process id is unique among the living; the time tells it from the dead whose files are still there.
    let started = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_nanos());
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{TEMPORARY_PREFIX}{}-{started:x}-{count}", std::process::id())
}
