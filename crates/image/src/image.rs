//! An image in the store: what it is, how it wants to be run, and the files that make up its disk.

use std::fs;
use std::path::{Path, PathBuf};

use crate::erofs::read;
use crate::manifest::Document;
use crate::store::publish::{CONFIG_FILE, DISK_FILE, MANIFEST_FILE, META_FILE};
use crate::store::read_optional;
use crate::vmdk;
use crate::{DiffId, Digest, Error, ImageConfig, ImageStore, Reference};

/// A complete image in an [`ImageStore`]. Plain data read from disk; holds nothing open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    digest: Digest,
    config_digest: Digest,
    config: ImageConfig,
    diff_ids: Vec<DiffId>,
    references: Vec<Reference>,
    disk: PathBuf,
    extents: Vec<DiskExtent>,
    layer_sizes: Vec<u64>,
}

/// One of the files that, one after the other, are an image's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskExtent {
    /// The file; absolute if the store's root is.
    pub path: PathBuf,
    /// Its size, a multiple of 4096.
    pub size_bytes: u64,
}

impl Image {
    /// Digest of the manifest: the image's identity.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The manifest as it came: its digest is the image's.
    ///
    /// # Errors
    /// [`Error::ReadStore`] when the image has been removed.
    pub fn manifest_bytes(&self) -> Result<Vec<u8>, Error> {
        self.document(MANIFEST_FILE)
    }

    pub(crate) fn config_bytes(&self) -> Result<Vec<u8>, Error> {
        self.document(CONFIG_FILE)
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, Error> {
        let path = self.disk.with_file_name(name);
        fs::read(&path).map_err(|source| Error::ReadStore { path, source })
    }

    /// Digest of the configuration, which Docker calls the image id.
    pub fn config_digest(&self) -> Digest {
        self.config_digest
    }

    /// How the image wants to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// What each layer contains, lowest first.
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.diff_ids
    }

    /// Names that stand for the image, in order.
    pub fn references(&self) -> &[Reference] {
        &self.references
    }

    /// The VMDK descriptor that makes one disk of [`Self::extents`]: an EROFS file system without partitions.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// The files behind the disk, in order: the image's metadata, then the layers it has data in.
    pub fn extents(&self) -> &[DiskExtent] {
        &self.extents
    }

    /// Size of the disk. Layers that other images share are counted in full.
    pub fn size_bytes(&self) -> u64 {
        self.extents.iter().map(|extent| extent.size_bytes).sum()
    }

    /// Size of the layers as they travel, usually compressed.
    pub fn download_bytes(&self) -> u64 {
        self.layer_sizes.iter().sum()
    }

    /// Sizes of the layers as they travel, lowest first.
    pub fn layer_sizes(&self) -> Vec<u64> {
        self.layer_sizes.clone()
    }

    /// Reads the image of this digest, if all of it is there.
    pub(crate) fn open(store: &ImageStore, digest: Digest) -> Result<Option<Self>, Error> {
        let directory = store.manifests_dir().join(digest.file_stem());
        let Some(manifest) = read_optional(&directory.join(MANIFEST_FILE))? else {
            return Ok(None);
        };
        let damaged =
            |file: &str, reason| Error::StoreDamaged { path: directory.join(file), reason };
        if Digest::of(&manifest) != digest {
            return Err(damaged(MANIFEST_FILE, "its digest is not the image's"));
        }
        let Document::Manifest(manifest) = Document::parse(&manifest)? else {
            return Err(damaged(MANIFEST_FILE, "it is an index"));
        };
        let Some(config) = read_optional(&directory.join(CONFIG_FILE))? else { return Ok(None) };
        let config_digest = Digest::of(&config);
        if config_digest != manifest.config.digest {
            return Err(damaged(CONFIG_FILE, "its digest is not the one in the manifest"));
        }
        let Some(extents) = Self::complete_extents(store, &directory)? else { return Ok(None) };
        let (config, diff_ids) = ImageConfig::parse(&config)?;
        let references = store.refs()?.into_iter();
        Ok(Some(Self {
            digest,
            config_digest,
            config,
            diff_ids,
            references: references
                .filter(|(_, named)| *named == digest)
                .map(|(name, _)| name)
                .collect(),
            disk: directory.join(DISK_FILE),
            extents,
            layer_sizes: manifest.layers.iter().map(|layer| layer.size).collect(),
        }))
    }

    /// Paths in the descriptor of the image of this digest, relative to it; none if it is not there.
    pub(crate) fn extent_names(store: &ImageStore, digest: &Digest) -> Result<Vec<PathBuf>, Error> {
        let disk = store.manifests_dir().join(digest.file_stem()).join(DISK_FILE);
        let text = read_optional(&disk)?;
        let extents = text.and_then(|text| vmdk::decode(&String::from_utf8_lossy(&text)));
        Ok(extents.unwrap_or_default().into_iter().map(|extent| extent.path).collect())
    }

    /// The extents with their places, if every one is there in full and in the store's block size.
    fn complete_extents(
        store: &ImageStore,
        directory: &Path,
    ) -> Result<Option<Vec<DiskExtent>>, Error> {
        let Some(text) = read_optional(&directory.join(DISK_FILE))? else { return Ok(None) };
        let Some(extents) = vmdk::decode(&String::from_utf8_lossy(&text)) else {
            return Err(Error::StoreDamaged {
                path: directory.join(DISK_FILE),
                reason: "it is no descriptor of ours",
            });
        };
        let mut found = Vec::with_capacity(extents.len());
        for extent in extents {
            let name = extent.path.file_name().unwrap_or_default();
            let path = if extent.path == Path::new(META_FILE) {
                directory.join(name)
            } else {
                store.layers_dir().join(name)
            };
            if fs::metadata(&path).map(|file| file.len()).ok() != Some(extent.size_bytes) {
                return Ok(None);
            }
            found.push(DiskExtent { path, size_bytes: extent.size_bytes });
        }
        let superblock = read::superblock(&directory.join(META_FILE))?;
        Ok((superblock.block_size == store.block_size()).then_some(found))
    }
}
