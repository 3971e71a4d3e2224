//! Images as sandboxes use them: found in the store, pulled, loaded, removed.

use std::{io::Read, path::Path, sync::Arc};

use microsandbox_image::{
    ArchiveSource, Digest, Image as StoredImage, Progress, PullOptions, Reference,
};

use crate::{
    MicrosandboxError, MicrosandboxResult, PullPolicy, RootfsSource, SandboxConfig, home::Home,
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

    /// Fetches an image from its registry, as far as it is not in the store.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`]; the store is as it was then.
    pub async fn pull(
        reference: &str,
        policy: PullPolicy,
        progress: &dyn Progress,
    ) -> MicrosandboxResult<Self> {
        let home = Home::from_env()?;
        home.ensure()?;
        let stored = pull(&home, &parse(reference)?, policy, progress).await?;
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

    /// Takes a name away, and the image with it when no other name and no sandbox needs it. Gives
    /// the bytes that were freed.
    ///
    /// # Errors
    /// [`MicrosandboxError::Image`] when there is no such name.
    pub async fn remove(reference: &str) -> MicrosandboxResult<u64> {
        let home = Home::from_env()?;
        let pinned = match home.existing_catalogue()? {
            Some(catalogue) => catalogue.pinned_manifests().await?,
            None => Vec::new(),
        };
        let pinned: Vec<Digest> = pinned.iter().filter_map(|text| text.parse().ok()).collect();
        Ok(home.images().remove(&parse(reference)?, &pinned)?.freed_bytes)
    }
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
    let loaded = tokio::task::spawn_blocking(work).await;
    let loaded = loaded.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    Ok(loaded.into_iter().map(|stored| Image { stored }).collect())
}

fn parse(reference: &str) -> MicrosandboxResult<Reference> {
    Ok(reference.parse()?)
}

async fn pull(
    home: &Home,
    reference: &Reference,
    policy: PullPolicy,
    progress: &dyn Progress,
) -> MicrosandboxResult<StoredImage> {
    let options = PullOptions::default().with_policy(match policy {
        PullPolicy::Always => microsandbox_image::PullPolicy::Always,
        PullPolicy::IfMissing => microsandbox_image::PullPolicy::IfMissing,
        PullPolicy::Never => microsandbox_image::PullPolicy::Never,
    });
    Ok(home.images().pull(reference, &options, progress).await?)
}

/// The image a sandbox is to be made from.
pub(crate) async fn ensure(
    home: &Home,
    config: &SandboxConfig,
    progress: &dyn Progress,
) -> MicrosandboxResult<StoredImage> {
    let RootfsSource::Oci(source) = &config.image;
    pull(home, &parse(&source.reference)?, config.pull_policy, progress).await
}

/// The image a sandbox was made from.
pub(crate) fn pinned(home: &Home, config: &SandboxConfig) -> MicrosandboxResult<StoredImage> {
    let text = config.manifest_digest.clone().unwrap_or_default();
    let missing = || MicrosandboxError::SandboxImageMissing {
        name: config.name.clone(),
        digest: text.clone(),
    };
    let digest: Digest = text.parse().map_err(|_| missing())?;
    home.images().image(&digest)?.ok_or_else(missing)
}
