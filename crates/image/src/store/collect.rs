//! Collection: removes what no name and no pin reaches, and more when the store has to shrink.

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::ImageStore;
use super::files::{Temporary, write_fault};
use super::inventory::{Inventory, Owner, Reach};
use crate::{DiffId, Digest, Error};

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
    /// Removes images without a name that are neither among `pinned` nor held, layers that no image has, and what
    /// crashes left.
    ///
    /// Does nothing while another process makes an image.
    ///
    /// # Errors
    /// [`Error::WriteStore`] when something could not be removed; collecting again goes on from there.
    pub fn collect(&self, pinned: &[Digest]) -> Result<Collected, Error> {
        self.shrink(u64::MAX, pinned)
    }

    /// Collects, then removes images with their names, those first that were not used for longest, until the store
    /// takes no more than `max_bytes` of disk or only images are left that are pinned or held.
    ///
    /// # Errors
    /// As [`Self::collect`].
    pub fn shrink(&self, max_bytes: u64, pinned: &[Digest]) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        if !self.root.exists() {
            return Ok(collected);
        }
        let Some(_lock) = self.lock_for_collection()? else {
            return Ok(Collected { postponed: true, ..collected });
        };
        loop {
            let left = self.sweep(pinned, &mut collected)?;
            if left <= max_bytes {
                return Ok(collected);
            }
            let Some(oldest) = self.least_recently_used(pinned)? else { return Ok(collected) };
            for (name, _) in self.refs()?.iter().filter(|(_, digest)| *digest == oldest) {
                self.remove_ref(name)?;
            }
        }
    }

    /// Removes what is not reached; answers with the bytes that stay. The lock for collections is held.
    fn sweep(&self, pinned: &[Digest], collected: &mut Collected) -> Result<u64, Error> {
        let mut reach = Reach::of(self, pinned)?;
        let inventory = Inventory::take(self)?;
        // Locked until they are gone: nobody can come to hold one that is on its way out.
        let mut doomed = Vec::new();
        for digest in inventory.images() {
            if reach.images.contains(&digest) {
                continue;
            }
            match self.lock_for_removal(&digest)? {
                Some(lock) => doomed.push((digest, lock)),
                None => reach.add(self, digest)?,
            }
        }
        for (digest, _lock) in &doomed {
            let path = self.manifests_dir().join(digest.file_stem());
            // Renamed first: a half-removed image must not be found under its name.
            let grave = Temporary::new(&self.manifests_dir());
            fs::rename(&path, &grave.path).map_err(|source| write_fault(&path, source))?;
            collected.images += 1;
        }
        let mut left = 0;
        for item in &inventory.items {
            if !reach.is_reclaimable(item) {
                left += item.bytes;
                continue;
            }
            collected.freed_bytes += item.bytes;
            if !matches!(item.owner, Owner::Image(_)) {
                remove(&item.path)?;
                collected.layers += usize::from(item.is_layer());
            }
        }
        Ok(left)
    }

    /// The image that can go first: named, but neither pinned nor held.
    fn least_recently_used(&self, pinned: &[Digest]) -> Result<Option<Digest>, Error> {
        let mut images = Vec::new();
        for digest in Inventory::take(self)?.images() {
            if !pinned.contains(&digest) && self.lock_for_removal(&digest)?.is_some() {
                images.push((self.last_used(&digest), digest));
            }
        }
        Ok(images.into_iter().min().map(|(_, digest)| digest))
    }

    /// Takes layers away that were made for an image that did not come about, unless others need them by now.
    ///
    /// Best effort: what stays goes with the next collection.
    pub(crate) fn discard_layers(&self, diff_ids: &[DiffId]) {
        let Ok(Some(_lock)) = self.lock_for_collection() else { return };
        let Ok(reach) = Reach::of_all(self) else { return };
        for diff_id in diff_ids.iter().filter(|diff_id| !reach.layers.contains(diff_id)) {
            for path in [self.layer_path(*diff_id), self.record_path(*diff_id)] {
                if path.is_file()
                    && let Err(error) = remove(&path)
                {
                    tracing::debug!(%error, "left for the next collection");
                }
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
}

fn remove(path: &Path) -> Result<(), Error> {
    let removed = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
    removed.map_err(|source| write_fault(path, source))
}
