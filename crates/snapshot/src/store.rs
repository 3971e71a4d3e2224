//! The store: a directory of snapshots, one directory each, under their names.

use std::{
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
};

use crate::{
    Digest, Draft, Error, FileRecord, IfTaken, Manifest, Result, archive, draft,
    manifest::MANIFEST, seen::Seen,
};

/// Longest name; it is a directory's, and some room is left below 255.
const MAX_NAME_BYTES: usize = 128;

/// Snapshots in one directory. Making one does no I/O.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotStore {
    root: PathBuf,
}

/// A snapshot whose manifest has been read. Its files are looked at by [`Snapshot::check`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) id: Digest,
    pub(crate) manifest: Manifest,
}

impl SnapshotStore {
    /// The store at `root`, which need not exist.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Begins a snapshot, after removing what killed processes have left.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn draft(&self) -> Result<Draft> {
        self.sweep()?;
        Draft::new(&self.root)
    }

    /// Removes what killed processes have left.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn sweep(&self) -> Result<()> {
        Draft::sweep(&self.root)
    }

    /// The snapshot of that name, or of that id.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Name`], or what reading its manifest reports.
    pub fn get(&self, name: &str) -> Result<Snapshot> {
        if let Ok(id) = name.parse::<Digest>() {
            let found = self.list()?.into_iter().find(|snapshot| snapshot.id == id);
            return found.ok_or_else(|| Error::NotFound { name: name.into() });
        }
        check_name(name)?;
        Snapshot::open(&self.root.join(name))
    }

    /// Every snapshot that can be read, by name; others are told in the log.
    ///
    /// # Errors
    /// [`Error::File`] when the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Snapshot>> {
        let mut snapshots = Vec::new();
        for entry in read_dir_if_there(&self.root)? {
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") || !path.is_dir() {
                continue;
            }
            match Snapshot::open(&path) {
                Ok(snapshot) => snapshots.push(snapshot),
                // Removed since the directory was read.
                Err(Error::NotFound { .. }) => {}
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a snapshot is passed over");
                }
            }
        }
        snapshots.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(snapshots)
    }

    /// Digests of the images that snapshots need, also those of snapshots in a newer format.
    ///
    /// # Errors
    /// [`Error::File`] when the directory or a manifest cannot be read.
    pub fn pinned_images(&self) -> Result<Vec<String>> {
        let pins = read_dir_if_there(&self.root)?;
        pins.iter().filter_map(|entry| Manifest::read_pin(&entry.path()).transpose()).collect()
    }

    /// Removes the snapshot of that name, readable or not.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Name`], [`Error::File`].
    pub fn remove(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let path = self.root.join(name);
        match draft::remove(&self.root, &path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::NotFound { name: name.into() })
            }
            removed => removed.map_err(Error::file("remove", &path)),
        }
    }

    /// Takes in an archive that [`crate::export`] wrote, as `name` or else under the name it has.
    /// A directory with an image that came along is given to `with_image` before the
    /// snapshot becomes visible.
    ///
    /// # Errors
    /// [`Error::AlreadyExists`], [`Error::Archive`], [`Error::Altered`], [`Error::Unlike`] and others;
    /// the store is as it was then. What `with_image` reports is passed on.
    pub fn import<E: From<Error>>(
        &self,
        input: impl io::Read,
        name: Option<&str>,
        taken: IfTaken,
        with_image: impl FnOnce(&Path, &Manifest) -> std::result::Result<(), E>,
    ) -> std::result::Result<Snapshot, E> {
        archive::import(self, input, name, taken, with_image)
    }
}

impl Snapshot {
    /// The snapshot in that directory.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Manifest`], [`Error::Version`], [`Error::Unlike`].
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        match Manifest::read(path) {
            Ok((manifest, id)) => Ok(Self { name, path: path.to_owned(), id, manifest }),
            Err(Error::File { source, .. })
                if source.kind() == io::ErrorKind::NotFound && !path.exists() =>
            {
                Err(Error::NotFound { name })
            }
            Err(error) => Err(error),
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is by content: the digest of its manifest.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The path of one of its files.
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        self.manifest.files.contains_key(name).then(|| self.path.join(name))
    }

    /// What it takes on disk.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn stored_bytes(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        let names = self.manifest.files.keys().map(String::as_str).chain([MANIFEST]);
        names.map(|name| self.path.join(name)).try_fold(0, |total, path| {
            let stat = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
            Ok(total + stat.blocks() * 512)
        })
    }

    /// Makes sure that its files are what the manifest says. One that nobody has touched since it was
    /// last checked is not read again.
    ///
    /// # Errors
    /// [`Error::Altered`], [`Error::Unlike`], [`Error::File`].
    pub fn check(&self) -> Result<()> {
        self.check_kinds()?;
        if Seen::now(&self.path, self.id, &self.manifest)?.is_noted(&self.path) {
            return Ok(());
        }
        self.verify()
    }

    /// As [`Snapshot::check`], reading everything.
    ///
    /// # Errors
    /// As [`Snapshot::check`].
    pub fn verify(&self) -> Result<()> {
        self.check_kinds()?;
        let before = Seen::now(&self.path, self.id, &self.manifest)?;
        for (name, record) in &self.manifest.files {
            let path = self.path.join(name);
            let found = FileRecord::of(&path)?;
            if found != *record {
                let (expected, found) = (record.digest, found.digest);
                return Err(Error::Altered { path, expected, found });
            }
        }
        before.note(&self.path);
        Ok(())
    }

    /// Looks at what the files are, without reading them.
    fn check_kinds(&self) -> Result<()> {
        for (name, record) in &self.manifest.files {
            let path = self.path.join(name);
            let unlike = |what| Err(Error::Unlike { path: path.clone(), what });
            match fs::symlink_metadata(&path) {
                Ok(stat) if !stat.is_file() => return unlike("it is no file"),
                Ok(stat) if stat.len() != record.size_bytes => return unlike("another length"),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    return unlike("it is missing");
                }
                Err(error) => return Err(Error::file("look at", &path)(error)),
            }
        }
        Ok(())
    }
}

/// Says whether a snapshot may have this name: a single path component that is no option either.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let legal = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && !name.starts_with(['.', '-'])
        && !name.contains('/')
        && !name.contains(char::is_control)
        && name.parse::<Digest>().is_err();
    if legal { Ok(()) } else { Err(Error::Name { name: name.into() }) }
}

/// The entries of a directory; none where there is no directory.
pub(crate) fn read_dir_if_there(path: &Path) -> Result<Vec<DirEntry>> {
    match fs::read_dir(path) {
        Ok(entries) => entries.collect::<io::Result<_>>().map_err(Error::file("list", path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::file("list", path)(error)),
    }
}
