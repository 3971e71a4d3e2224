//! A snapshot that is being made: a hidden directory that is renamed when it is whole.
//!
//! Its maker holds a lock (`flock(2)`) on it. One without a holder was left by a process that was
//! killed, and goes with the next writing command.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use microsandbox_archive::clone_file;
use rustix::fs::{CWD, RenameFlags};

use crate::{
    Digest, Error, FileRecord, Manifest, NewManifest, Result, Snapshot,
    manifest::MANIFEST,
    seen::Seen,
    store::{check_name, read_dir_if_there},
};

/// What hidden names begin with.
const PREFIX: &str = ".new-";

/// What happens when the name is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfTaken {
    /// The new one is refused.
    Fail,
    /// The old one gives way, at once and as a whole.
    Replace,
}

/// A snapshot that is being made. Dropping it leaves nothing.
#[derive(Debug)]
#[must_use]
pub struct Draft {
    store: PathBuf,
    path: PathBuf,
    /// Holds the lock.
    _directory: File,
}

impl Draft {
    pub(crate) fn new(store: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(store)
            .map_err(Error::file("make", store))?;
        loop {
            let path = store.join(unique_name());
            DirBuilder::new().mode(0o700).create(&path).map_err(Error::file("make", &path))?;
            // Between the two steps somebody may have taken it for one that was left.
            if let Some(directory) = lock(&path)? {
                return Ok(Self { store: store.to_owned(), path, _directory: directory });
            }
        }
    }

    /// Removes what killed processes have left in a store.
    pub(crate) fn sweep(store: &Path) -> Result<()> {
        for entry in read_dir_if_there(store)? {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes())
                && lock(&path)?.is_some()
            {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    /// The directory, to put files into.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a copy of `from` into it, sharing blocks where the file system can.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn clone_in(&self, name: &str, from: &Path) -> Result<()> {
        let to = self.path.join(name);
        self.make_parent(&to)?;
        let source = File::open(from).map_err(Error::file("open", from))?;
        let copy = new_file(&to).map_err(Error::file("make", &to))?;
        clone_file(&source, &copy).map_err(Error::file("copy", from))
    }

    /// Puts the file `from` itself into it, or where that lies on another file system, a copy.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn move_in(&self, name: &str, from: &Path) -> Result<()> {
        let to = self.path.join(name);
        self.make_parent(&to)?;
        match fs::rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                self.clone_in(name, from)?;
                fs::remove_file(from).map_err(Error::file("remove", from))
            }
            moved => moved.map_err(Error::file("move", from)),
        }
    }

    fn make_parent(&self, file: &Path) -> Result<()> {
        let parent = file.parent().unwrap_or(&self.path);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(Error::file("make", parent))
    }

    /// Makes it visible under `name`, with a manifest of what is in it. Waits for the disk.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::AlreadyExists`], [`Error::File`]; the store is as it was then.
    pub fn publish(self, name: &str, new: NewManifest, taken: IfTaken) -> Result<Snapshot> {
        let mut files = BTreeMap::new();
        record_files(&self.path, Path::new(""), &mut files)?;
        let manifest = Manifest::new(name, new, files);
        let path = self.path.join(MANIFEST);
        let bytes = manifest.to_bytes(&path)?;
        fs::write(&path, &bytes).map_err(Error::file("write", &path))?;
        let id = Digest::of(&bytes);
        self.put_in_place(name, id, manifest, taken)
    }

    /// Makes a draft visible whose manifest has come with it, and is right.
    pub(crate) fn put_in_place(
        self,
        name: &str,
        id: Digest,
        manifest: Manifest,
        taken: IfTaken,
    ) -> Result<Snapshot> {
        check_name(name)?;
        for file in manifest.files.keys().map(String::as_str).chain([MANIFEST]) {
            sync(&self.path.join(file))?;
        }
        Seen::now(&self.path, id, &manifest)?.note(&self.path);
        sync_directories(&self.path, &manifest)?;
        let path = self.store.join(name);
        match fs::rename(&self.path, &path) {
            Ok(()) => {}
            // A snapshot's directory is never empty, so the kernel replaces none.
            Err(error) if is_taken(&error) && taken == IfTaken::Fail => {
                return Err(Error::AlreadyExists { name: name.into() });
            }
            Err(error) if is_taken(&error) => {
                rustix::fs::renameat_with(CWD, &self.path, CWD, &path, RenameFlags::EXCHANGE)
                    .map_err(Error::file("replace", &path))?;
            }
            Err(error) => return Err(Error::file("rename to", &path)(error)),
        }
        sync(&self.store)?;
        Ok(Snapshot { name: name.into(), path, id, manifest })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone when it was published; after a replacement this is the old one.
        if let Err(error) = remove_tree(&self.path) {
            tracing::warn!(%error, "a half-made snapshot stays until the next command");
        }
    }
}

/// Takes a snapshot out of sight, and then away.
pub(crate) fn remove(store: &Path, path: &Path) -> io::Result<()> {
    let hidden = store.join(unique_name());
    fs::rename(path, &hidden)?;
    remove_tree(&hidden).map_err(io::Error::other)
}

/// Makes an empty file for its owner alone.
fn new_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Locks a draft's directory; `None` when somebody else holds it, or it is gone.
fn lock(path: &Path) -> Result<Option<File>> {
    let failed = Error::file("lock", path);
    let directory = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(Error::file("open", path))?,
    };
    match directory.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(None),
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    let same =
        || -> io::Result<bool> { Ok(fs::metadata(path)?.ino() == directory.metadata()?.ino()) };
    match same() {
        Ok(true) => Ok(Some(directory)),
        Ok(false) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Finds out what the files of a draft hold.
fn record_files(root: &Path, below: &Path, files: &mut BTreeMap<String, FileRecord>) -> Result<()> {
    for entry in read_dir_if_there(&root.join(below))? {
        let (path, name) = (entry.path(), below.join(entry.file_name()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            record_files(root, &name, files)?;
            continue;
        }
        let name = name.into_os_string().into_string();
        let name = name.map_err(|_| Error::Unlike { path: path.clone(), what: "its name" })?;
        files.insert(name, FileRecord::of(&path)?);
    }
    Ok(())
}

impl FileRecord {
    /// What a file holds. Reads all of its data.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let read = || {
            let file = File::open(path)?;
            let size_bytes = file.metadata()?.len();
            Ok(Self { size_bytes, digest: Digest::of_content(&file)? })
        };
        read().map_err(|error: io::Error| Error::file("read", path)(error))
    }
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::file("sync", path))
}

fn sync_directories(root: &Path, manifest: &Manifest) -> Result<()> {
    let parents = manifest.files.keys().filter_map(|name| Path::new(name).parent());
    let parents: std::collections::BTreeSet<&Path> = parents.collect();
    parents.into_iter().chain([Path::new("")]).try_for_each(|parent| sync(&root.join(parent)))
}

fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotADirectory
    )
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// A name that no other process and no other thread uses at this time.
fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{:x}-{}-{count}", now.as_nanos(), std::process::id())
}
