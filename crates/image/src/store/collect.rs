//! Collection: removes what no name and no pin reaches.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::ImageStore;
use super::files::{TEMPORARY_PREFIX, Temporary, write_fault};
use crate::{DiffId, Digest, Error, Image};

/// How long a collection waits for makers of images. Even where there is none, a child that a program is just
/// starting holds copies of its locks until it runs another program.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// What a collection did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Collected {
    /// Images removed.
    pub images: usize,
    /// Layers removed.
    pub layers: usize,
    /// Bytes of disk given back.
    pub freed_bytes: u64,
    /// An image was being made, so nothing was removed; the next collection will.
    pub postponed: bool,
}

impl ImageStore {
    /// Removes images without a name that are not among `pinned`, layers that no image has, and what crashes left.
    ///
    /// Does nothing while another process makes an image.
    ///
    /// # Errors
    /// [`Error::WriteStore`] when something could not be removed; collecting again goes on from there.
    pub fn collect(&self, pinned: &[Digest]) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        if !self.root.exists() {
            return Ok(collected);
        }
        let Some(_lock) = self.lock_for_collection()? else {
            return Ok(Collected { postponed: true, ..collected });
        };
        let mut kept: HashSet<Digest> =
            self.refs()?.into_iter().map(|(_, digest)| digest).collect();
        kept.extend(pinned);
        let manifests = self.manifests_dir();
        for name in self.names_in(&manifests)? {
            let path = manifests.join(&name);
            match Digest::from_file_stem(&name) {
                Some(digest) if kept.contains(&digest) => {}
                Some(_) => {
                    collected.images += 1;
                    collected.freed_bytes += directory_bytes(&path);
                    // Renamed first: a half-removed image must not be found under its name.
                    let doomed = Temporary::new(&manifests);
                    fs::rename(&path, &doomed.path).map_err(|source| write_fault(&path, source))?;
                }
                None if name.ends_with(super::layers::PARTIAL_SUFFIX) => remove(&path)?,
                None if name.starts_with(TEMPORARY_PREFIX) => {
                    fs::remove_dir_all(&path).map_err(|source| write_fault(&path, source))?;
                }
                None => {}
            }
        }
        self.collect_layers(&kept, &mut collected)?;
        for name in self.names_in(&self.refs_dir())? {
            if name.starts_with(TEMPORARY_PREFIX) {
                remove(&self.refs_dir().join(name))?;
            }
        }
        Ok(collected)
    }

    /// Takes layers away that were made for an image that did not come about, unless others need them by now.
    ///
    /// Best effort: what stays goes with the next collection.
    pub(crate) fn discard_layers(&self, diff_ids: &[DiffId]) {
        let Ok(Some(_lock)) = self.lock_for_collection() else { return };
        let Ok(reached) = self.names_in(&self.manifests_dir()).and_then(|names| {
            let digests = names.iter().filter_map(|name| Digest::from_file_stem(name));
            self.reached_layers(digests)
        }) else {
            return;
        };
        for path in diff_ids.iter().map(|diff_id| self.layer_path(*diff_id)) {
            if path.file_name().is_some_and(|name| !reached.contains(name))
                && path.is_file()
                && let Err(error) = remove(&path)
            {
                tracing::debug!(%error, "left for the next collection");
            }
        }
    }

    /// The lock that no maker of images holds, or `None` if one keeps it longer than [`LOCK_PATIENCE`].
    fn lock_for_collection(&self) -> Result<Option<File>, Error> {
        let file = self.open_lock()?;
        let (sender, receiver) = mpsc::channel();
        // Files have no lock with a deadline. A thread that is still waiting then lets go of what it gets.
        thread::spawn(move || sender.send(file.lock().map(|()| file)));
        match receiver.recv_timeout(LOCK_PATIENCE) {
            Ok(Ok(locked)) => Ok(Some(locked)),
            Ok(Err(source)) => Err(write_fault(&self.lock_path(), source)),
            Err(_) => Ok(None),
        }
    }

    /// File names of the layers that these images have.
    fn reached_layers(
        &self,
        digests: impl Iterator<Item = Digest>,
    ) -> Result<HashSet<OsString>, Error> {
        let mut reached = HashSet::new();
        for digest in digests {
            let extents = Image::extent_names(self, &digest)?;
            reached.extend(extents.iter().filter_map(|path| path.file_name().map(Into::into)));
        }
        Ok(reached)
    }

    fn collect_layers(
        &self,
        kept: &HashSet<Digest>,
        collected: &mut Collected,
    ) -> Result<(), Error> {
        let reached = self.reached_layers(kept.iter().copied())?;
        let layers = self.layers_dir();
        for name in self.names_in(&layers)? {
            if reached.contains(&OsString::from(&name)) {
                continue;
            }
            let path = layers.join(&name);
            let is_layer = name.ends_with(".erofs");
            let is_left_over = name.ends_with(super::layers::PARTIAL_SUFFIX);
            if is_layer || is_left_over {
                collected.layers += usize::from(is_layer);
                collected.freed_bytes += file_bytes(&path);
                remove(&path)?;
            }
        }
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| write_fault(path, source))
}

fn directory_bytes(path: &Path) -> u64 {
    fs::read_dir(path).into_iter().flatten().flatten().map(|entry| file_bytes(&entry.path())).sum()
}

/// Bytes the file takes on disk, holes not counted.
fn file_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}
