//! Pulling: from a name to an image in the store.
//!
//! Waiting is async, work is on threads: each layer's bytes go through a bounded channel to a thread of its own, so
//! a slow disk or processor slows the network down and memory stays bounded. Dropping the future ends it all: the
//! channels close, the threads find their streams cut off and take their half-made files away.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::future::join;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::error::Subject;
use crate::layer::{self, Promise};
use crate::manifest::{Descriptor, Document, Manifest};
use crate::progress::{Progress, PullProgress};
use crate::registry::{Client, Mirror, RegistryAuth, RegistrySettings};
use crate::store::{Draft, LayerClaim, LayerState, Lease};
use crate::thread::blocking;
use crate::{DiffId, Digest, Error, Image, ImageConfig, ImageStore, Platform, Reference};

/// Layers that travel at the same time; registries answer single streams slowly.
const PARALLEL_LAYERS: usize = 4;

/// Chunks of one layer between the network and its thread; a fast network delivers up to 400 KiB at a time.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Deepest nesting of indexes; one level occurs, two are conceivable.
const MAX_NESTING: usize = 4;

/// How and when to fetch.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PullOptions {
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// Platform to choose where several are offered.
    pub platform: Platform,
    /// Whether there is a network to ask.
    pub network: Network,
    /// How registries are reached.
    pub registries: RegistrySettings,
}

/// Whether a pull may use the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// It may.
    #[default]
    Online,
    /// It must not, whatever the policy says: what is not in the store is an error.
    Offline,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            policy: PullPolicy::default(),
            platform: Platform::host_linux(),
            network: Network::default(),
            registries: RegistrySettings::default(),
        }
    }
}

impl PullOptions {
    /// The same options with another policy.
    #[must_use]
    pub fn with_policy(mut self, policy: PullPolicy) -> Self {
        self.policy = policy;
        self
    }

    /// The same options for another platform.
    #[must_use]
    pub fn with_platform(mut self, platform: Platform) -> Self {
        self.platform = platform;
        self
    }

    /// The same options with or without a network.
    #[must_use]
    pub fn with_network(mut self, network: Network) -> Self {
        self.network = network;
        self
    }

    /// The same options for another user.
    #[must_use]
    pub fn with_auth(mut self, auth: RegistryAuth) -> Self {
        self.registries.auth = auth;
        self
    }

    /// The same options, with one more registry that needs neither encryption nor a valid certificate.
    #[must_use]
    pub fn with_insecure_host(mut self, host: impl Into<String>) -> Self {
        self.registries.insecure_hosts.push(host.into());
        self
    }

    /// The same options, with the certificates of authorities in one more file (PEM).
    #[must_use]
    pub fn with_ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.registries.ca_files.push(path.into());
        self
    }

    /// The same options with one more mirror, tried after those before it.
    #[must_use]
    pub fn with_mirror(mut self, mirror: Mirror) -> Self {
        self.registries.mirrors.push(mirror);
        self
    }

    /// The same options with another limit to how long a registry may send nothing.
    #[must_use]
    pub fn with_stall_timeout(mut self, timeout: Duration) -> Self {
        self.registries.stall_timeout = timeout;
        self
    }
}

/// When the registry is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Only when the store does not have the image.
    #[default]
    IfMissing,
    /// Every time, to learn what the name stands for now; what is there is not fetched again.
    Always,
    /// Never.
    Never,
}

/// What a name stands for on one platform.
struct Resolved {
    digest: Digest,
    bytes: Vec<u8>,
    manifest: Box<Manifest>,
}

impl ImageStore {
    /// Brings the image into the store, if it is not there, and names it.
    ///
    /// # Errors
    /// Any [`Error`] about names, registries, documents, layers or the store. Layers that were finished when a
    /// connection failed stay until the next collection, so that trying again goes on from there; an image that is
    /// itself at fault leaves nothing.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work; nothing half-made stays.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        progress.report(PullProgress::Resolving { reference: reference.clone() });
        // What a digest names does not change: there is nothing to ask.
        let must_ask = options.policy == PullPolicy::Always
            && options.network == Network::Online
            && reference.digest().is_none();
        let cached = if must_ask { None } else { self.cached(reference, options).await? };
        let missing = || reference.clone().into();
        let image = match (cached, options.policy, options.network) {
            (Some(image), ..) => {
                report_resolved(reference, image.digest(), &image.layer_sizes(), progress);
                image
            }
            (None, PullPolicy::Never, _) => return Err(Error::NotCached { reference: missing() }),
            (None, _, Network::Offline) => return Err(Error::Offline { reference: missing() }),
            (None, _, Network::Online) => self.bring(reference, options, progress).await?,
        };
        progress.report(PullProgress::Complete {
            reference: reference.clone(),
            layer_count: image.diff_ids().len(),
        });
        Ok(image)
    }

    /// As [`Self::pull`], for programs that have no async runtime: blocks until it is done.
    ///
    /// # Errors
    /// As [`Self::pull`]; [`Error::StartRuntime`].
    ///
    /// # Panics
    /// Within an async runtime, which must not be blocked.
    pub fn pull_blocking(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::StartRuntime { source })?
            .block_on(self.pull(reference, options, progress))
    }

    /// The image from the store, if it is the one that was asked for.
    async fn cached(
        &self,
        reference: &Reference,
        options: &PullOptions,
    ) -> Result<Option<Image>, Error> {
        let (store, name) = (self.clone(), reference.clone());
        let platform = options.platform.clone();
        blocking("find-image", move || {
            // The same name may have been pulled for another platform.
            let fits = |image: &Image| platform.accepts(&image.config().platform());
            let Some(image) = store.get(&name)?.filter(fits) else { return Ok(None) };
            if image.references().contains(&name) {
                store.mark_used(&image.digest());
                return Ok(Some(image));
            }
            // It was found by its digest alone; from now on this name keeps it, too.
            let _lease = store.lease()?;
            store.write_ref(&name, image.digest())?;
            store.mark_used(&image.digest());
            store.get(&name)
        })
        .await
    }

    /// Asks the registry what the name stands for, makes that image if it is not there, and names it.
    async fn bring(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        let client = Client::new(reference, &options.registries)?;
        let resolved = resolve(&client, reference, &options.platform)
            .await
            .map_err(|error| error.fetching(Subject::Manifest, reference))?;
        let sizes: Vec<u64> = resolved.manifest.layers.iter().map(|layer| layer.size).collect();
        report_resolved(reference, resolved.digest, &sizes, progress);
        let store = self.clone();
        let lease = Arc::new(blocking("lease-store", move || store.lease()).await?);
        let mut pull =
            Pull { store: self, client, reference, resolved, progress, made: Vec::new() };
        let pulled = pull.run(&lease).await;
        drop(lease);
        if pulled.as_ref().is_err_and(Error::is_lasting) {
            let (store, made) = (self.clone(), pull.made);
            let discard = move || {
                store.discard_layers(&made);
                Ok(())
            };
            blocking("discard-layers", discard).await?;
        }
        pulled
    }
}

/// One image on its way into the store.
struct Pull<'a> {
    store: &'a ImageStore,
    client: Client,
    reference: &'a Reference,
    resolved: Resolved,
    progress: &'a dyn Progress,
    /// Layers that were not there before.
    made: Vec<DiffId>,
}

impl Pull<'_> {
    async fn run(&mut self, lease: &Arc<Lease>) -> Result<Image, Error> {
        let (store, digest) = (self.store.clone(), self.resolved.digest);
        if blocking("find-image", move || store.image(&digest)).await?.is_none() {
            let (config, diff_ids) = self
                .describe()
                .await
                .map_err(|error| error.fetching(Subject::Configuration, self.reference))?;
            let missing = diff_ids.iter().filter(|diff_id| !self.store.has_layer(**diff_id));
            self.made = missing.copied().collect();
            self.fetch(&diff_ids).await?;
            self.progress.report(PullProgress::StitchStarted { layer_count: diff_ids.len() });
            let (store, lease) = (self.store.clone(), Arc::clone(lease));
            let manifest = self.resolved.bytes.clone();
            blocking("publish-image", move || {
                let draft = Draft { manifest: &manifest, config: &config, diff_ids: &diff_ids };
                store.publish(&draft, &lease)
            })
            .await?;
        }
        let (store, name) = (self.store.clone(), self.reference.clone());
        blocking("name-image", move || {
            store.write_ref(&name, digest)?;
            store.mark_used(&digest);
            store.complete_image(digest)
        })
        .await
    }

    /// The configuration, and what each layer will contain.
    async fn describe(&self) -> Result<(Vec<u8>, Vec<DiffId>), Error> {
        let manifest = &self.resolved.manifest;
        let config = self.client.config(&manifest.config).await?;
        let (_, diff_ids) = ImageConfig::parse(&config)?;
        if diff_ids.len() != manifest.layers.len() {
            return Err(Error::UnevenLayers {
                digest: self.resolved.digest,
                layers: manifest.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        Ok((config, diff_ids))
    }

    /// Fetches every layer that is missing, a few at a time.
    async fn fetch(&self, diff_ids: &[DiffId]) -> Result<(), Error> {
        // A loop, not closures: those would keep the future from being `Send` (rust-lang/rust#100013).
        let mut jobs = Vec::with_capacity(diff_ids.len());
        let layers = self.resolved.manifest.layers.iter();
        for (index, (layer, diff_id)) in layers.zip(diff_ids).enumerate() {
            // A layer may occur twice; waiting for one's own claim would be forever.
            if !diff_ids[..index].contains(diff_id) {
                let job = Job { index, layer, diff_id: *diff_id, progress: self.progress };
                jobs.push(self.fetch_layer(job));
            }
        }
        stream::iter(jobs).buffer_unordered(PARALLEL_LAYERS).try_collect::<()>().await
    }

    /// Makes one layer while it travels, unless it is there or another process is making it.
    async fn fetch_layer(&self, job: Job<'_>) -> Result<(), Error> {
        let (store, diff_id) = (self.store.clone(), job.diff_id);
        match blocking("claim-layer", move || store.claim_layer(diff_id)).await? {
            LayerState::Present => job.report_downloaded(0),
            LayerState::Claimed(claim) => {
                job.report_started();
                let received = self.make_layer(&job, claim).await?;
                job.report_downloaded(received);
            }
        }
        job.report_complete();
        Ok(())
    }

    async fn make_layer(&self, job: &Job<'_>, claim: LayerClaim) -> Result<u64, Error> {
        let (sink, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let promise =
            Promise { blob: Some((job.layer.digest, job.layer.size)), diff_id: Some(job.diff_id) };
        let (store, layer) = (self.store.clone(), job.layer.digest);
        let image = self.reference.familiar();
        let making = blocking("make-layer", move || {
            let input = Incoming { chunks, chunk: Bytes::new() };
            layer::build(input, promise, claim.target(&store), &|_| {})
                .map_err(|source| Error::Layer { image, layer, source: source.into() })?;
            claim.publish()
        });
        let on_bytes = |count| job.report_progress(count);
        let downloading = self.client.download(job.layer, sink, &on_bytes);
        // A broken download also ends the making, as a layer that is cut off: the download knows why.
        let (downloaded, made) = join(downloading, making).await;
        let received = downloaded
            .map_err(|error| error.fetching(Subject::Layer(job.layer.digest), self.reference))?;
        made.map(|()| received)
    }
}

/// One layer of a pull.
struct Job<'a> {
    index: usize,
    layer: &'a Descriptor,
    diff_id: DiffId,
    progress: &'a dyn Progress,
}

impl Job<'_> {
    fn report_started(&self) {
        self.progress.report(PullProgress::LayerMaterializeStarted {
            layer_index: self.index,
            diff_id: self.diff_id,
        });
    }

    fn report_progress(&self, downloaded_bytes: u64) {
        self.progress.report(PullProgress::LayerDownloadProgress {
            layer_index: self.index,
            digest: self.layer.digest,
            downloaded_bytes,
            total_bytes: Some(self.layer.size),
        });
    }

    fn report_downloaded(&self, downloaded_bytes: u64) {
        self.progress.report(PullProgress::LayerDownloadComplete {
            layer_index: self.index,
            digest: self.layer.digest,
            downloaded_bytes,
        });
    }

    fn report_complete(&self) {
        self.progress.report(PullProgress::LayerMaterializeComplete {
            layer_index: self.index,
            diff_id: self.diff_id,
        });
    }
}

/// Follows indexes to the manifest for `platform`.
async fn resolve(
    client: &Client,
    reference: &Reference,
    platform: &Platform,
) -> Result<Resolved, Error> {
    let mut selector = reference.selector();
    for _ in 0..=MAX_NESTING {
        let bytes = client.manifest(&selector).await?;
        match Document::parse(&bytes)? {
            Document::Manifest(manifest) => {
                return Ok(Resolved { digest: Digest::of(&bytes), bytes, manifest });
            }
            Document::Index(index) => {
                let Some(chosen) = index.choose(platform) else {
                    return Err(Error::NoPlatform {
                        image: reference.familiar(),
                        wanted: platform.clone().into(),
                        offered: index.platforms(),
                    });
                };
                selector = chosen.digest.to_string();
            }
        }
    }
    Err(Error::NestedTooDeep { image: reference.familiar(), limit: MAX_NESTING })
}

fn report_resolved(
    reference: &Reference,
    manifest_digest: Digest,
    layer_sizes: &[u64],
    progress: &dyn Progress,
) {
    progress.report(PullProgress::Resolved {
        reference: reference.clone(),
        manifest_digest,
        layer_count: layer_sizes.len(),
        total_download_bytes: Some(layer_sizes.iter().sum()),
    });
}

/// Chunks from the network as a reader for a thread.
struct Incoming {
    chunks: mpsc::Receiver<Bytes>,
    chunk: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.chunk = chunk,
                None => return Ok(0),
            }
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Silent;

    #[test]
    fn a_pull_can_be_spawned() {
        fn assert_send(_: impl Send) {}
        let (store, reference) = (ImageStore::open("/nowhere"), "debian".parse().unwrap());
        assert_send(store.pull(&reference, &PullOptions::default(), &Silent));
    }
}
