//! Layer files: claimed by one process, waited for by the others, found by all.
//!
//! A layer is two files: its file system, and the record of what its archive had besides. The record becomes visible
//! first, so a layer that is found has one.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ImageStore;
use super::files::{create_directory, sync_directory, unique_name, write_fault};
use crate::layer::Target;
use crate::{DiffId, Error};

/// Ending of files that are being made; each is locked by its maker.
pub(super) const PARTIAL_SUFFIX: &str = ".partial";

/// Ending of a layer's file system.
pub(super) const LAYER_SUFFIX: &str = ".erofs";

/// Ending of the record next to it.
pub(super) const RECORD_SUFFIX: &str = ".record";

/// What became of asking for a layer.
#[derive(Debug)]
pub(crate) enum LayerState {
    /// It is in the store.
    Present,
    /// The caller has to make it; others that ask for it wait until the claim ends.
    Claimed(LayerClaim),
}

/// The right to make one layer, and the file to make it in. Dropped without publishing, it leaves nothing.
#[derive(Debug)]
pub(crate) struct LayerClaim {
    making: StagedLayer,
    target: PathBuf,
}

/// A layer that is being made before its diff id is known.
#[derive(Debug)]
pub(crate) struct StagedLayer {
    /// Nobody else touches it while `partial` is locked, so it has to go first.
    record: Scratch,
    partial: Partial,
}

impl ImageStore {
    pub(crate) fn layer_path(&self, diff_id: DiffId) -> PathBuf {
        let block_size = self.block_size.bytes();
        self.layers_dir().join(format!("{}.{block_size}{LAYER_SUFFIX}", diff_id.0.file_stem()))
    }

    /// The record that belongs to [`Self::layer_path`].
    pub(crate) fn record_path(&self, diff_id: DiffId) -> PathBuf {
        self.layer_path(diff_id).with_extension(&RECORD_SUFFIX[1..])
    }

    /// Whether the layer is there, with its record.
    pub(crate) fn has_layer(&self, diff_id: DiffId) -> bool {
        self.layer_path(diff_id).is_file() && self.record_path(diff_id).is_file()
    }

    /// Finds the layer or claims it. Waits while another process makes it: call where blocking is allowed.
    pub(crate) fn claim_layer(&self, diff_id: DiffId) -> Result<LayerState, Error> {
        if self.has_layer(diff_id) {
            return Ok(LayerState::Present);
        }
        create_directory(&self.layers_dir())?;
        let target = self.layer_path(diff_id);
        let making = StagedLayer::lock(with_suffix(&target, PARTIAL_SUFFIX))?;
        // The maker that was waited for may have finished it meanwhile.
        if self.has_layer(diff_id) {
            return Ok(LayerState::Present);
        }
        Ok(LayerState::Claimed(LayerClaim { making, target }))
    }

    /// A file for a layer whose diff id will be known when it has been read.
    pub(crate) fn stage_layer(&self) -> Result<StagedLayer, Error> {
        create_directory(&self.layers_dir())?;
        StagedLayer::lock(self.layers_dir().join(format!("{}{PARTIAL_SUFFIX}", unique_name())))
    }

    /// Gives a staged layer its place; one that is already there stays and the new one goes.
    pub(crate) fn adopt_layer(&self, staged: StagedLayer, diff_id: DiffId) -> Result<(), Error> {
        match self.claim_layer(diff_id)? {
            LayerState::Present => Ok(()),
            LayerState::Claimed(claim) => staged.publish(&claim.target),
        }
    }
}

impl LayerClaim {
    pub(crate) fn target<'a>(&'a self, store: &ImageStore) -> Target<'a> {
        self.making.target(store)
    }

    /// Makes the layer visible, durably.
    pub(crate) fn publish(self) -> Result<(), Error> {
        self.making.publish(&self.target)
    }
}

impl StagedLayer {
    fn lock(path: PathBuf) -> Result<Self, Error> {
        let partial = Partial::lock(path)?;
        let record = Scratch::create(with_suffix(&partial.path, RECORD_SUFFIX))?;
        Ok(Self { record, partial })
    }

    pub(crate) fn target<'a>(&'a self, store: &ImageStore) -> Target<'a> {
        Target {
            file: &self.partial.file,
            path: &self.partial.path,
            record: &self.record.file,
            block_size: store.block_size,
            limits: store.limits,
        }
    }

    /// The record first: a layer that can be seen has one.
    fn publish(self, target: &Path) -> Result<(), Error> {
        self.record.publish(&target.with_extension(&RECORD_SUFFIX[1..]))?;
        self.partial.publish(target)
    }
}

/// A locked, empty file with a temporary name. The file is its own lock: nothing else has to be cleaned up.
#[derive(Debug)]
pub(super) struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    /// Waits for whoever has the file, and empties what a crash has left in it.
    pub(super) fn lock(path: PathBuf) -> Result<Self, Error> {
        let attempt = || -> io::Result<Option<File>> {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            file.lock()?;
            // The file may have been published or removed while it was waited for: then it is not ours.
            let ours = file.metadata()?;
            let named = fs::metadata(&path);
            let same =
                named.is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()));
            if same {
                file.set_len(0)?;
            }
            Ok(same.then_some(file))
        };
        loop {
            if let Some(file) = attempt().map_err(|source| write_fault(&path, source))? {
                return Ok(Self { file, path });
            }
        }
    }

    fn publish(self, target: &Path) -> Result<(), Error> {
        let publish = || {
            self.file.sync_all()?;
            fs::rename(&self.path, target)
        };
        publish().map_err(|source| write_fault(target, source))?;
        sync_directory(target.parent().unwrap_or(target))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After publishing there is nothing of this name; a failure leaves it to the next collection.
        let _ = fs::remove_file(&self.path);
    }
}

/// A new file that goes with a locked one.
#[derive(Debug)]
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = File::create(&path).map_err(|source| write_fault(&path, source))?;
        Ok(Self { file, path })
    }

    /// Renames it; the directory is synced with the file it goes with.
    fn publish(self, target: &Path) -> Result<(), Error> {
        let publish = || {
            self.file.sync_all()?;
            fs::rename(&self.path, target)
        };
        publish().map_err(|source| write_fault(target, source))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // As with the file it goes with.
        let _ = fs::remove_file(&self.path);
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    name.into()
}
