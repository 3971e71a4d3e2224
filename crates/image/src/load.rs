//! Loading: images from an OCI layout, an OCI archive or a docker-archive, from disk or from a stream.
//!
//! [`members`] makes the three look alike: documents by name, layers by name. A stream is read once and its layers
//! are turned into file systems as they pass, before the manifest that names them has been seen.

mod docker;
mod members;
mod oci;
mod rootfs;

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use self::members::{Layer, Members};
use crate::layer::{self, Promise};
use crate::manifest::{Descriptor, Document, MAX_MANIFEST_BYTES};
use crate::progress::{Progress, PullProgress};
use crate::store::{Draft, ImageStore, LayerState, Lease};
use crate::{DiffId, Digest, Error, Image, ImageConfig, Reference};

/// Layers that are made at the same time; each keeps about two cores busy.
const PARALLEL_LAYERS: usize = 2;

/// Where images are loaded from.
pub enum ArchiveSource {
    /// A layout directory or an archive file, told apart by looking.
    Path(PathBuf),
    /// An archive that arrives as a stream, such as standard input; it is read once.
    Stream(Box<dyn Read + Send>),
}

impl fmt::Debug for ArchiveSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(_) => f.debug_tuple("Stream").finish_non_exhaustive(),
        }
    }
}

/// What goes along with making the images of one archive.
struct Making<'a> {
    lease: &'a Lease,
    /// Layers that were not there before; they go again if loading fails.
    made: &'a mut Vec<DiffId>,
    progress: &'a dyn Progress,
}

/// An image found in an archive, before its layers are made.
#[derive(Debug)]
struct Found {
    /// Name of the image for messages.
    label: String,
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<FoundLayer>,
    names: Vec<Reference>,
}

#[derive(Debug)]
struct FoundLayer {
    /// Name of its member in the archive.
    member: String,
    blob: Option<Descriptor>,
    diff_id: DiffId,
}

impl ImageStore {
    /// Loads every image of an archive; where several platforms are offered, the one for this host.
    ///
    /// `name`, if given, becomes the first image's name in place of those written in the archive. Blocks: run it
    /// where blocking is allowed. Images without any name are kept until the next collection.
    ///
    /// # Errors
    /// Any [`Error`] about archives, documents, layers or the store. Images of the archive that were complete before
    /// the fault stay, nothing else.
    pub fn load(
        &self,
        source: ArchiveSource,
        name: Option<&Reference>,
        progress: &dyn Progress,
    ) -> Result<Vec<Image>, Error> {
        let lease = self.lease()?;
        let mut made = Vec::new();
        let loaded =
            self.load_all(source, name, Making { lease: &lease, made: &mut made, progress });
        if loaded.is_err() {
            drop(lease);
            self.discard_layers(&made);
        }
        loaded
    }

    /// Loads the one image of an archive that [`ImageStore::save`] wrote, under the manifest that the image had
    /// before it was saved, which gives it the digest it had. It gets no name.
    ///
    /// # Errors
    /// As [`ImageStore::load`]; [`Error::ParseManifest`] and [`Error::ManifestOfOther`] when `manifest` is none, or of
    /// another image.
    pub fn load_as(
        &self,
        source: ArchiveSource,
        manifest: &[u8],
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        let lease = self.lease()?;
        let digest = Digest::of(manifest);
        if let Some(image) = self.image(&digest)? {
            return Ok(image);
        }
        let other = || Error::ManifestOfOther { digest };
        let Document::Manifest(document) = Document::parse(manifest)? else { return Err(other()) };
        let loaded = self.load(source, None, progress)?;
        let is_it = |image: &&Image| image.config_digest() == document.config.digest;
        let image = loaded.iter().find(is_it).ok_or_else(other)?;
        let config = image.config_bytes()?;
        let draft = Draft { manifest, config: &config, diff_ids: image.diff_ids() };
        self.publish(&draft, &lease)
    }

    fn load_all(
        &self,
        source: ArchiveSource,
        name: Option<&Reference>,
        mut making: Making<'_>,
    ) -> Result<Vec<Image>, Error> {
        let mut members = Members::open(source, self)?;
        let found = if members.contains("index.json") {
            oci::images(&members)?
        } else if members.contains("manifest.json") {
            docker::images(&members)?
        } else {
            Vec::new()
        };
        let mut found = Found::merge(found);
        let Some(first) = found.first_mut() else {
            return Err(Error::ArchiveEmpty { archive: members.origin().to_owned() });
        };
        if let Some(name) = name {
            first.names = vec![name.clone()];
        }
        found.iter().map(|found| self.load_one(found, &mut members, &mut making)).collect()
    }

    fn load_one(
        &self,
        found: &Found,
        members: &mut Members,
        making: &mut Making<'_>,
    ) -> Result<Image, Error> {
        let progress = making.progress;
        let digest = Digest::of(&found.manifest);
        if self.image(&digest)?.is_none() {
            let layers = found.layers.iter().map(|layer| layer.diff_id);
            making.made.extend(layers.filter(|diff_id| !self.has_layer(*diff_id)));
            self.load_layers(found, members, progress)?;
        }
        progress.report(PullProgress::StitchStarted { layer_count: found.layers.len() });
        let diff_ids: Vec<DiffId> = found.layers.iter().map(|layer| layer.diff_id).collect();
        let draft = Draft { manifest: &found.manifest, config: &found.config, diff_ids: &diff_ids };
        self.publish(&draft, making.lease)?;
        for name in &found.names {
            self.write_ref(name, digest)?;
        }
        self.mark_used(&digest);
        if let Some(reference) = found.names.first() {
            progress.report(PullProgress::Complete {
                reference: reference.clone(),
                layer_count: found.layers.len(),
            });
        }
        // Read again for the names it has now.
        self.complete_image(digest)
    }

    /// Makes the layers that are not there yet, a few at a time.
    fn load_layers(
        &self,
        found: &Found,
        members: &mut Members,
        progress: &dyn Progress,
    ) -> Result<(), Error> {
        let mut jobs = Vec::new();
        for (index, layer) in found.layers.iter().enumerate() {
            // One process waits for another's claim, but must not wait for its own.
            let repeated = found.layers[..index].iter().any(|other| other.diff_id == layer.diff_id);
            if !repeated && !self.has_layer(layer.diff_id) {
                jobs.push((index, layer, members.take_layer(&layer.member)?));
            }
        }
        let queue = Mutex::new(jobs.into_iter());
        let work = || -> Result<(), Error> {
            loop {
                let next = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                let Some((index, layer, input)) = next else { return Ok(()) };
                let diff_id = layer.diff_id;
                progress
                    .report(PullProgress::LayerMaterializeStarted { layer_index: index, diff_id });
                self.load_layer(layer, index, input, progress).map_err(|fault| match fault {
                    LayerFault::Store(error) => error,
                    LayerFault::Content(source) => Error::Layer {
                        image: found.label.clone(),
                        layer: layer.blob.as_ref().map_or(diff_id.0, |blob| blob.digest),
                        source: source.into(),
                    },
                })?;
                progress
                    .report(PullProgress::LayerMaterializeComplete { layer_index: index, diff_id });
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..PARALLEL_LAYERS).map(|_| scope.spawn(work)).collect();
            let results = workers.into_iter().map(|worker| match worker.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            // Every worker is waited for; the first fault is the answer.
            results.fold(Ok(()), Result::and)
        })
    }

    fn load_layer(
        &self,
        layer: &FoundLayer,
        index: usize,
        input: Layer,
        progress: &dyn Progress,
    ) -> Result<(), LayerFault> {
        let promise = Promise {
            blob: layer.blob.as_ref().map(|blob| (blob.digest, blob.size)),
            diff_id: Some(layer.diff_id),
        };
        match input {
            Layer::Made(made) => {
                let (staged, facts) = made.map_err(LayerFault::Content)?;
                promise.check(&facts).map_err(LayerFault::Content)?;
                self.adopt_layer(staged, facts.diff_id).map_err(LayerFault::Store)
            }
            Layer::Readable { input, size } => {
                match self.claim_layer(layer.diff_id).map_err(LayerFault::Store)? {
                    LayerState::Present => Ok(()),
                    LayerState::Claimed(claim) => {
                        let on_read = |count| {
                            progress.report(PullProgress::LayerDownloadProgress {
                                layer_index: index,
                                digest: layer
                                    .blob
                                    .as_ref()
                                    .map_or(layer.diff_id.0, |blob| blob.digest),
                                downloaded_bytes: count,
                                total_bytes: Some(size),
                            });
                        };
                        layer::build(input, promise, claim.target(self), &on_read)
                            .map_err(LayerFault::Content)?;
                        claim.publish().map_err(LayerFault::Store)
                    }
                }
            }
        }
    }
}

/// A layer's own fault gets the image's name on its way out; the store's needs none.
enum LayerFault {
    Content(crate::LayerError),
    Store(Error),
}

impl Found {
    /// An image that occurs under several names is one image with several names.
    fn merge(found: Vec<Self>) -> Vec<Self> {
        let mut merged: Vec<Self> = Vec::with_capacity(found.len());
        for image in found {
            match merged.iter_mut().find(|other| other.manifest == image.manifest) {
                Some(same) => same.names.extend(image.names),
                None => merged.push(image),
            }
        }
        merged
    }

    /// Pairs layers with diff ids.
    fn new(
        label: String,
        manifest: Vec<u8>,
        config: Vec<u8>,
        layers: Vec<(String, Option<Descriptor>)>,
        names: Vec<Reference>,
    ) -> Result<Self, Error> {
        let (_, diff_ids) = ImageConfig::parse(&config)?;
        if diff_ids.len() != layers.len() {
            return Err(Error::UnevenLayers {
                digest: Digest::of(&manifest),
                layers: layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let layers = layers
            .into_iter()
            .zip(diff_ids)
            .map(|((member, blob), diff_id)| FoundLayer { member, blob, diff_id })
            .collect();
        Ok(Self { label, manifest, config, layers, names })
    }
}

/// Reads a document by its digest and checks that it has it.
fn verified(
    members: &Members,
    member: &str,
    descriptor: &Descriptor,
    subject: &'static str,
) -> Result<Vec<u8>, Error> {
    let limit = descriptor.size.min(MAX_MANIFEST_BYTES);
    let bytes = members.document(member, limit)?;
    let actual = Digest::of(&bytes);
    if actual != descriptor.digest {
        return Err(Error::BlobDigest { subject, expected: descriptor.digest, actual });
    }
    Ok(bytes)
}

/// Name of an archive in messages.
fn origin(path: Option<&Path>) -> PathBuf {
    path.unwrap_or_else(|| Path::new("-")).to_owned()
}
