//! Holds: images in use that no collection may take, and when an image was last used.
//!
//! Whoever holds an image has a shared lock on its manifest; a collection removes an image only with an exclusive one.
//! The modification time of the disk descriptor, which is written once, says when the image was last used.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::ImageStore;
use super::files::{read_fault, write_fault};
use super::publish::{DISK_FILE, MANIFEST_FILE};
use crate::{Digest, Error, Image};

/// While it lives, no collection of any process takes the image away. The kernel ends it with the process.
#[derive(Debug)]
#[must_use = "the image is held as long as this lives"]
pub struct ImageHold {
    _file: File,
}

impl ImageStore {
    /// Holds an image until something else keeps it, and marks it as used now. `None` if it has been removed.
    ///
    /// # Errors
    /// [`Error::ReadStore`]; [`Error::WriteStore`] when it cannot be locked.
    pub fn hold(&self, image: &Image) -> Result<Option<ImageHold>, Error> {
        let digest = image.digest();
        let path = self.manifest_path(&digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(read_fault(&path, source)),
        };
        file.lock_shared().map_err(|source| write_fault(&path, source))?;
        // A collection may have taken it while it was waited for.
        if !is_named(&file, &path) || self.image(&digest)?.is_none() {
            return Ok(None);
        }
        self.mark_used(&digest);
        Ok(Some(ImageHold { _file: file }))
    }

    /// The lock that allows removing an image; `None` while somebody holds it.
    pub(super) fn lock_for_removal(&self, digest: &Digest) -> Result<Option<Option<File>>, Error> {
        let path = self.manifest_path(digest);
        // An image without a manifest is half made; nobody can hold it.
        let Ok(file) = File::open(&path) else { return Ok(Some(None)) };
        match file.try_lock() {
            Ok(()) => Ok(Some(Some(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(source)) => Err(write_fault(&path, source)),
        }
    }

    /// Notes that the image is used now. Best effort: a store that cannot be written to can still be read.
    pub(crate) fn mark_used(&self, digest: &Digest) {
        let path = self.manifests_dir().join(digest.file_stem()).join(DISK_FILE);
        let marked = File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = marked {
            tracing::debug!(%error, path = %path.display(), "the image seems unused for longer");
        }
    }

    /// When the image was last used.
    pub(super) fn last_used(&self, digest: &Digest) -> Option<SystemTime> {
        let path = self.manifests_dir().join(digest.file_stem()).join(DISK_FILE);
        path.metadata().and_then(|file| file.modified()).ok()
    }

    fn manifest_path(&self, digest: &Digest) -> PathBuf {
        self.manifests_dir().join(digest.file_stem()).join(MANIFEST_FILE)
    }
}

/// Whether the open file is still the one at `path`.
fn is_named(file: &File, path: &std::path::Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), path.metadata()) else { return false };
    (open.dev(), open.ino()) == (named.dev(), named.ino())
}
