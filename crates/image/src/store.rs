//! The store: images on disk, content-addressed, shared by any number of processes.
//!
//! ```text
//! <root>/lock                              held shared while images are made, exclusively while collecting
//!        layers/sha256-<diff id>.<block size>.erofs      one per layer, whichever images have it
//!               sha256-<diff id>.<block size>.record     what its archive had besides, to save it again
//!               *.partial                  being made by the process that holds its lock
//!        manifests/sha256-<digest>/{manifest.json,config.json,meta.erofs,disk.vmdk}
//!        refs/<encoded name>               which manifest the name stands for
//! ```
//! Everything becomes visible by a rename, whole. What a crash leaves is never taken for something finished and
//! goes with the next collection. Reading creates nothing and locks nothing.
//!
//! Making images is in [`crate::pull`] and [`crate::load`]; this module knows neither networks nor archives.

mod collect;
mod files;
mod hold;
mod inventory;
mod layers;
pub(crate) mod publish;
mod refs;
mod usage;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use self::collect::Collected;
pub(crate) use self::files::read_optional;
use self::files::{create_directory, read_fault, write_fault};
pub use self::hold::ImageHold;
pub use self::inventory::StorePart;
pub(crate) use self::layers::{LayerClaim, LayerState, StagedLayer};
pub(crate) use self::publish::Draft;
pub use self::usage::{ImageUsage, PartUsage, StoreUsage};
use crate::erofs::BlockSize;
use crate::{Digest, Error, Image, Limits, Reference};

/// A directory of images. Cheap to make and to clone; opening does no I/O.
#[derive(Debug, Clone)]
pub struct ImageStore {
    root: PathBuf,
    block_size: BlockSize,
    limits: Limits,
}

impl ImageStore {
    /// A store at `root`, which is made (mode 0700) when something is first written.
    pub fn open(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), block_size: BlockSize::default(), limits: Limits::default() }
    }

    /// The same store, building images of another block size. An image is only ever found under the size it was
    /// built with.
    #[must_use]
    pub fn with_block_size(mut self, block_size: BlockSize) -> Self {
        self.block_size = block_size;
        self
    }

    /// The same store with other limits for the layers that it takes in from now on.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The directory the store lies in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The image that `reference` names here, if it is complete. Touches no network.
    ///
    /// # Errors
    /// [`Error::ReadStore`], [`Error::StoreDamaged`].
    pub fn get(&self, reference: &Reference) -> Result<Option<Image>, Error> {
        let digest = match self.read_ref(reference)? {
            Some(digest) => digest,
            None => match reference.digest() {
                Some(digest) => digest,
                None => return Ok(None),
            },
        };
        self.image(&digest)
    }

    /// The image whose manifest has `digest`, if it is complete.
    ///
    /// # Errors
    /// [`Error::ReadStore`], [`Error::StoreDamaged`].
    pub fn image(&self, digest: &Digest) -> Result<Option<Image>, Error> {
        Image::open(self, *digest)
    }

    /// Every complete image, ordered by name; those without a name come last.
    ///
    /// # Errors
    /// [`Error::ReadStore`], [`Error::StoreDamaged`].
    pub fn list(&self) -> Result<Vec<Image>, Error> {
        let mut images = Vec::new();
        for name in self.names_in(&self.manifests_dir())? {
            if let Some(digest) = Digest::from_file_stem(&name) {
                images.extend(self.image(&digest)?);
            }
        }
        images.sort_by_cached_key(|image| {
            (image.references().is_empty(), image.references().first().cloned(), image.digest())
        });
        Ok(images)
    }

    /// Gives the image that `reference` names another name, which costs nothing but the name.
    ///
    /// # Errors
    /// [`Error::NotCached`] when there is no such image; [`Error::WriteStore`].
    pub fn tag(&self, reference: &Reference, name: &Reference) -> Result<Image, Error> {
        let not_cached = || Error::NotCached { reference: reference.clone().into() };
        if self.get(reference)?.is_none() {
            return Err(not_cached());
        }
        let _lease = self.lease()?;
        // Looked up again: a collection may have been faster.
        let image = self.get(reference)?.ok_or_else(not_cached)?;
        self.write_ref(name, image.digest())?;
        self.complete_image(image.digest())
    }

    /// Takes the name away, then removes what no other name and no pin needs.
    ///
    /// # Errors
    /// [`Error::NotCached`] when there is no such name; [`Error::WriteStore`].
    pub fn remove(&self, reference: &Reference, pinned: &[Digest]) -> Result<Collected, Error> {
        if !self.remove_ref(reference)? {
            return Err(Error::NotCached { reference: reference.clone().into() });
        }
        self.collect(pinned)
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(crate) fn manifests_dir(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// Keeps collections away while an image is being made, so that its layers are not taken for rubbish.
    ///
    /// Waits while a collection runs, which takes no longer than removing files does.
    pub(crate) fn lease(&self) -> Result<Lease, Error> {
        let file = self.open_lock()?;
        file.lock_shared().map_err(|source| write_fault(&self.lock_path(), source))?;
        Ok(Lease { _file: file })
    }

    fn open_lock(&self) -> Result<fs::File, Error> {
        create_directory(&self.root)?;
        let path = self.lock_path();
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|source| write_fault(&path, source))
    }

    fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Names in a directory of the store; none if it does not exist yet.
    fn names_in(&self, directory: &Path) -> Result<Vec<String>, Error> {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(read_fault(directory, source)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| read_fault(directory, source))?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }
}

/// While it lives, nothing is collected.
#[derive(Debug)]
pub(crate) struct Lease {
    _file: fs::File,
}
