//! Progress: what a pull or a load tells while it works.

use crate::{DiffId, Digest, Reference};

/// One step of a pull or a load. Layers are named by their position in the image, lowest first.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullProgress {
    /// The name is being looked up.
    Resolving {
        /// Image asked for.
        reference: Reference,
    },
    /// It is known what will be fetched.
    Resolved {
        /// Image asked for.
        reference: Reference,
        /// Manifest that the name stands for on this platform.
        manifest_digest: Digest,
        /// Layers of the image.
        layer_count: usize,
        /// Bytes of all layers as they travel.
        total_download_bytes: Option<u64>,
    },
    /// A layer is travelling.
    LayerDownloadProgress {
        /// Position of the layer.
        layer_index: usize,
        /// Digest of the layer as it travels.
        digest: Digest,
        /// Bytes so far.
        downloaded_bytes: u64,
        /// Bytes in all.
        total_bytes: Option<u64>,
    },
    /// A layer has arrived, or need not travel.
    LayerDownloadComplete {
        /// Position of the layer.
        layer_index: usize,
        /// Digest of the layer as it travels.
        digest: Digest,
        /// Bytes that travelled; 0 when the layer was there.
        downloaded_bytes: u64,
    },
    /// A layer is being turned into a file system, as it arrives.
    LayerMaterializeStarted {
        /// Position of the layer.
        layer_index: usize,
        /// What it contains.
        diff_id: DiffId,
    },
    /// A layer's file system is in the store.
    LayerMaterializeComplete {
        /// Position of the layer.
        layer_index: usize,
        /// What it contains.
        diff_id: DiffId,
    },
    /// The layers are being merged into one tree.
    StitchStarted {
        /// Layers of the image.
        layer_count: usize,
    },
    /// The image is in the store.
    Complete {
        /// Image asked for.
        reference: Reference,
        /// Layers of the image.
        layer_count: usize,
    },
}

/// Something that hears of progress; called from several threads, expected to return at once.
pub trait Progress: Send + Sync {
    /// Takes one event.
    fn report(&self, event: PullProgress);
}

impl<F: Fn(PullProgress) + Send + Sync> Progress for F {
    fn report(&self, event: PullProgress) {
        self(event);
    }
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: PullProgress) {}
}
