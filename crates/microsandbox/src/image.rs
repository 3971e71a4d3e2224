//! Images as sandboxes use them: found in the store, pulled, loaded, removed.

use std::{
    io::{Read, Write},
    path::Path,
    sync::Arc,
};

pub use microsandbox_image::{
    ArchiveFormat, Collected, FileKind, FileReader, FileStat, ImageConfig, ImageFiles, ImageHold,
    ImageUsage, LayerCompression, Links, Mirror, Network, PartUsage, Platform, PullOptions,
    RegistryAuth, RegistrySettings, SaveOptions, StorePart, StoreUsage,
};
use microsandbox_image::{
    ArchiveSource, Digest, Image as StoredImage, Progress, Reference, SaveTarget,
};

use crate::{
    MicrosandboxError, MicrosandboxResult, PullPolicy, RootfsSource, SandboxConfig, env,
    home::Home, thread::on_thread,
};

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    stored: StoredImage,
}

impl Image {
    /// Digest of its manifest, `sha256:…`.
    pub fn digest(&self) -> String {
        self.stored.digest().to_string()
    }

    /// Digest of its configuration, which Docker calls the image id.
    pub fn config_digest(&self) -> String {
        self.stored.config_digest().to_string()
    }

    /// How it wants to be run.
    pub fn config(&self) -> &ImageConfig {
        self.stored.config()
    }

    /// What each of its layers contains, lowest first, `sha256:…`.
    pub fn diff_ids(&self) -> Vec<String> {
        self.stored.diff_ids().iter().map(ToString::to_string).collect()
    }

    /// Bytes of its layers as they travel, usually compressed.
    pub fn download_bytes(&self) -> u64 {
        self.stored.download_bytes()
    }

    /// Bytes of each of its layers as it travels, lowest first.
    pub fn layer_download_bytes(&self) -> Vec<u64> {
        self.stored.layer_sizes()
    }

    /// The descriptor that makes one disk of its parts.
    pub fn disk(&self) -> &Path {
        self.stored.disk()
    }

    /// Loads its tree, to look at its files without booting it.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when the store cannot be read.
    pub fn files(&self) -> MicrosandboxResult<ImageFiles> {
        Ok(self.stored.files()?)
    }

    /// Names that stand for it.
    pub fn references(&self) -> &[Reference] {
        self.stored.references()
    }

    /// Bytes of its disk; layers that other images share are counted in full.
    pub fn size_bytes(&self) -> u64 {
        self.stored.size_bytes()
    }

    /// Number of layers.
    pub fn layer_count(&self) -> usize {
        self.stored.diff_ids().len()
    }

    /// `linux/amd64` or the like.
    pub fn platform(&self) -> String {
        self.stored.config().platform().to_string()
    }

    /// Every image in the store, ordered by name.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when the store cannot be read.
    pub fn list() -> MicrosandboxResult<Vec<Self>> {
        let images = Home::from_env()?.images().list()?;
        Ok(images.into_iter().map(|stored| Self { stored }).collect())
    }

    /// The image of that name, if it is in the store. Touches no network.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when the name is none or the store cannot be read.
    pub fn get(reference: &str) -> MicrosandboxResult<Option<Self>> {
        let image = Home::from_env()?.images().get(&parse(reference)?)?;
        Ok(image.map(|stored| Self { stored }))
    }

    /// The image of that name, which must be in the store. Touches no network.
    ///
    /// # Errors
    /// As [`Image::get`], and when there is no such image.
    pub fn local(reference: &str) -> MicrosandboxResult<Self> {
        let reference = parse(reference)?;
        let stored = Home::from_env()?.images().get(&reference)?;
        let missing = || microsandbox_image::Error::NotCached { reference: reference.into() };
        Ok(Self { stored: stored.ok_or_else(missing)? })
    }

    /// Fetches an image from its registry, as far as it is not in the store.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; the store is as it was then.
    pub async fn pull(
        reference: &str,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> MicrosandboxResult<Self> {
        Self::pull_with(reference, policy, pull_options()?, progress).await
    }

    /// As [`Image::pull`], with options beyond those that the environment sets. Start from
    /// [`pull_options`] to keep these; the policy is `policy` in any case.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; the store is as it was then.
    pub async fn pull_with(
        reference: &str,
        policy: PullPolicy,
        options: PullOptions,
        progress: &dyn Progress,
    ) -> MicrosandboxResult<Self> {
        let home = Home::from_env()?;
        home.ensure()?;
        let options = options.with_policy(policy.into());
        let stored = home.images().pull(&parse(reference)?, &options, progress).await?;
        Ok(Self { stored })
    }

    /// Loads the images of an OCI layout, an OCI archive or a docker-archive at `path`. `tag` names
    /// the image where the archive has one; without it they keep the names the archive gives.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; the store is as it was then.
    pub async fn load(
        path: &Path,
        tag: Option<&str>,
        progress: Arc<dyn Progress>,
    ) -> MicrosandboxResult<Vec<Self>> {
        load(ArchiveSource::Path(path.to_owned()), tag, progress).await
    }

    /// Makes an image of one layer from a root directory and calls it `tag`. `config` says how it
    /// wants to be run; without a platform it is for this host.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; the store is as it was then.
    pub async fn load_directory(
        root: &Path,
        tag: &str,
        config: ImageConfig,
        progress: Arc<dyn Progress>,
    ) -> MicrosandboxResult<Self> {
        let home = Home::from_env()?;
        home.ensure()?;
        let (root, tag) = (root.to_owned(), parse(tag)?);
        let store = home.images();
        let work = move || store.load_directory(&root, &tag, &config, &*progress);
        Ok(Self { stored: on_thread("load-image", work).await? })
    }

    /// As [`Image::load`] from a stream, such as standard input.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; the store is as it was then.
    pub async fn load_from(
        archive: impl Read + Send + 'static,
        tag: Option<&str>,
        progress: Arc<dyn Progress>,
    ) -> MicrosandboxResult<Vec<Self>> {
        load(ArchiveSource::Stream(Box::new(archive)), tag, progress).await
    }

    /// Writes images to a file or, for a layout, a directory, under the names they are asked for by.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; nothing is left at `path` then.
    pub async fn save(
        references: &[&str],
        path: &Path,
        options: SaveOptions,
    ) -> MicrosandboxResult<()> {
        save(references, SaveTarget::Path(path.to_owned()), options).await
    }

    /// As [`Image::save`] to a stream, such as standard output.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`].
    pub async fn save_to(
        references: &[&str],
        archive: impl Write + Send + 'static,
        options: SaveOptions,
    ) -> MicrosandboxResult<()> {
        save(references, SaveTarget::Stream(Box::new(archive)), options).await
    }

    /// Gives an image another name, which costs nothing but the name.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when there is no such image.
    pub fn tag(reference: &str, name: &str) -> MicrosandboxResult<Self> {
        let stored = Home::from_env()?.images().tag(&parse(reference)?, &parse(name)?)?;
        Ok(Self { stored })
    }

    /// Takes a name away, and the image with it when no other name and no sandbox needs it.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when there is no such name.
    pub async fn remove(reference: &str) -> MicrosandboxResult<Collected> {
        let home = Home::from_env()?;
        let pinned = pins(&home).await?;
        Ok(home.images().remove(&parse(reference)?, &pinned)?)
    }

    /// Removes what no name and no sandbox needs, and what crashes left.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when something could not be removed.
    pub async fn collect() -> MicrosandboxResult<Collected> {
        let home = Home::from_env()?;
        let pinned = pins(&home).await?;
        Ok(home.images().collect(&pinned)?)
    }

    /// Collects, then removes images that no sandbox needs, those first that were not used for
    /// longest, until the store takes no more than `max_bytes` of disk or none is left.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when something could not be removed.
    pub async fn shrink(max_bytes: u64) -> MicrosandboxResult<Collected> {
        let home = Home::from_env()?;
        let pinned = pins(&home).await?;
        Ok(home.images().shrink(max_bytes, &pinned)?)
    }

    /// What the store takes on disk, and what a collection would give back.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when the store cannot be read.
    pub async fn usage() -> MicrosandboxResult<StoreUsage> {
        let home = Home::from_env()?;
        let pinned = pins(&home).await?;
        Ok(home.images().usage(&pinned)?)
    }
}

/// Images that sandboxes and snapshots need.
async fn pins(home: &Home) -> MicrosandboxResult<Vec<Digest>> {
    // Snapshots last: a sandbox that is removed meanwhile may have left one.
    let mut pinned = match home.existing_catalogue()? {
        Some(catalogue) => catalogue.pinned_manifests().await?,
        None => Vec::new(),
    };
    pinned.extend(home.snapshots().pinned_images()?);
    Ok(pinned.iter().filter_map(|text| text.parse().ok()).collect())
}

async fn save(
    references: &[&str],
    target: SaveTarget,
    options: SaveOptions,
) -> MicrosandboxResult<()> {
    let store = Home::from_env()?.images();
    let references: Vec<Reference> =
        references.iter().map(|name| parse(name)).collect::<Result<_, _>>()?;
    let work = move || store.save(&references, target, &options);
    on_thread("save-images", work).await
}

async fn load(
    source: ArchiveSource,
    tag: Option<&str>,
    progress: Arc<dyn Progress>,
) -> MicrosandboxResult<Vec<Image>> {
    let home = Home::from_env()?;
    home.ensure()?;
    let tag = tag.map(parse).transpose()?;
    let store = home.images();
    let work = move || store.load(source, tag.as_ref(), &*progress);
    let loaded = on_thread("load-images", work).await?;
    Ok(loaded.into_iter().map(|stored| Image { stored }).collect())
}

fn parse(reference: &str) -> MicrosandboxResult<Reference> {
    Ok(reference.parse()?)
}

/// What the environment says about pulling: `MSB_OFFLINE`, `MSB_MIRRORS`, `MSB_INSECURE_REGISTRIES`
/// and `MSB_CA_CERTS`.
///
/// # Errors
/// [`MicrosandboxError::InvalidConfig`] for `MSB_OFFLINE`, [`MicrosandboxError::Image`] for a mirror.
pub fn pull_options() -> MicrosandboxResult<PullOptions> {
    let mut options = PullOptions::default();
    match env::read_text(env::MSB_OFFLINE).as_deref() {
        None | Some("0" | "false") => {}
        Some("1" | "true") => options = options.with_network(Network::Offline),
        Some(other) => {
            let message = format!("MSB_OFFLINE is {other:?}, not 1 or 0");
            return Err(MicrosandboxError::InvalidConfig(message));
        }
    }
    let list = |name| env::read_text(name).unwrap_or_default();
    for mirror in list(env::MSB_MIRRORS).split(',').filter(|text| !text.is_empty()) {
        options = options.with_mirror(mirror.trim().parse()?);
    }
    let hosts = list(env::MSB_INSECURE_REGISTRIES);
    for host in hosts.split(',').filter(|text| !text.is_empty()) {
        options = options.with_insecure_host(host.trim());
    }
    let files = env::read(env::MSB_CA_CERTS).unwrap_or_default();
    let files = std::env::split_paths(&files).filter(|path| !path.as_os_str().is_empty());
    Ok(files.fold(options, PullOptions::with_ca_file))
}

impl From<PullPolicy> for microsandbox_image::PullPolicy {
    fn from(policy: PullPolicy) -> Self {
        match policy {
            PullPolicy::Always => Self::Always,
            PullPolicy::IfMissing => Self::IfMissing,
            PullPolicy::Never => Self::Never,
        }
    }
}

/// The image a sandbox is to be made from, held until the catalogue pins it.
pub(crate) async fn ensure(
    home: &Home,
    config: &SandboxConfig,
    progress: &dyn Progress,
) -> MicrosandboxResult<(StoredImage, ImageHold)> {
    let RootfsSource::Oci(source) = &config.image;
    ensure_as(home, &parse(&source.reference)?, config, progress).await
}

/// As [`ensure`], by another reference than the definition's.
pub(crate) async fn ensure_as(
    home: &Home,
    reference: &Reference,
    config: &SandboxConfig,
    progress: &dyn Progress,
) -> MicrosandboxResult<(StoredImage, ImageHold)> {
    let (store, options) = (home.images(), pull_options()?.with_policy(config.pull_policy.into()));
    let image = store.pull(reference, &options, progress).await?;
    let gone = microsandbox_image::Error::NotCached { reference: reference.clone().into() };
    let hold = store.hold(&image)?.ok_or(gone)?;
    Ok((image, hold))
}

/// The image of that digest, held until the catalogue pins it, if it is in the store.
pub(crate) fn stored(
    home: &Home,
    digest: &Digest,
) -> MicrosandboxResult<Option<(StoredImage, ImageHold)>> {
    let store = home.images();
    let Some(image) = store.image(digest)? else { return Ok(None) };
    Ok(store.hold(&image)?.map(|hold| (image, hold)))
}

/// The image a sandbox was made from.
pub(crate) fn pinned(home: &Home, config: &SandboxConfig) -> MicrosandboxResult<StoredImage> {
    let text = config.manifest_digest.clone().unwrap_or_default();
    let missing = || MicrosandboxError::SandboxImageMissing {
        name: config.name.clone(),
        digest: text.clone(),
    };
    let digest: Digest = text.parse().map_err(|_| missing())?;
    let image = home.images().image(&digest)?.ok_or_else(missing)?;
    // Pinned as it is; this only says that it was used.
    let _hold = home.images().hold(&image)?;
    Ok(image)
}
