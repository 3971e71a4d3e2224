//! Publishing: layers that are in the store become an image.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::files::{Temporary, create_directory, sync_directory, write_fault, write_synced};
use super::layers::{PARTIAL_SUFFIX, Partial};
use super::{ImageStore, Lease};
use crate::erofs::write::Plan;
use crate::erofs::{HEAD_BYTES, Superblock, read};
use crate::merge::Merger;
use crate::tree::{Part, Tree};
use crate::vmdk::{self, Extent};
use crate::{DiffId, Digest, Error, Image};

/// Names of an image's files.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";
pub(crate) const CONFIG_FILE: &str = "config.json";
pub(crate) const META_FILE: &str = "meta.erofs";
pub(crate) const DISK_FILE: &str = "disk.vmdk";

/// An image whose layers are all in the store.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    /// The manifest's bytes; their digest is the image's name.
    pub(crate) manifest: &'a [u8],
    pub(crate) config: &'a [u8],
    /// Lowest first.
    pub(crate) diff_ids: &'a [DiffId],
}

impl ImageStore {
    /// Merges the layers and makes the image visible. The lease is what kept the layers from being collected.
    pub(crate) fn publish(&self, draft: &Draft<'_>, _lease: &Lease) -> Result<Image, Error> {
        let digest = Digest::of(draft.manifest);
        if let Some(image) = self.image(&digest)? {
            return Ok(image);
        }
        let manifests = self.manifests_dir();
        create_directory(&manifests)?;
        let target = manifests.join(digest.file_stem());
        // One publisher at a time: a second one would take the first one's image away to put its own there.
        let _turn = Partial::lock(manifests.join(digest.file_stem() + PARTIAL_SUFFIX))?;
        if let Some(image) = self.image(&digest)? {
            return Ok(image);
        }
        let new = Temporary::new(&manifests);
        create_directory(&new.path)?;
        write_synced(&new.path.join(MANIFEST_FILE), draft.manifest)?;
        write_synced(&new.path.join(CONFIG_FILE), draft.config)?;
        let extents = self.write_metadata(&new.path.join(META_FILE), digest, draft.diff_ids)?;
        let [a, b, c, d, ..] = digest.uuid();
        let descriptor = vmdk::encode(&extents, [a, b, c, d]);
        write_synced(&new.path.join(DISK_FILE), descriptor.as_bytes())?;
        sync_directory(&new.path)?;
        let damaged = Temporary::new(&manifests);
        if target.exists() {
            // It is there but incomplete.
            fs::rename(&target, &damaged.path).map_err(|source| write_fault(&target, source))?;
        }
        new.persist(&target)?;
        self.complete_image(digest)
    }

    /// An image that has just been written; that it is not there is a fault of the store.
    pub(crate) fn complete_image(&self, digest: Digest) -> Result<Image, Error> {
        self.image(&digest)?.ok_or_else(|| Error::StoreDamaged {
            path: self.manifests_dir().join(digest.file_stem()),
            reason: "an image is incomplete right after it was written",
        })
    }

    /// Writes the merged tree; answers with the files that make up the disk.
    fn write_metadata(
        &self,
        path: &Path,
        digest: Digest,
        diff_ids: &[DiffId],
    ) -> Result<Vec<Extent>, Error> {
        // A layer may occur several times; it is one part of the disk.
        let mut parts: Vec<DiffId> = Vec::new();
        for diff_id in diff_ids {
            if !parts.contains(diff_id) {
                parts.push(*diff_id);
            }
        }
        let tree = self.merged_tree(diff_ids, &parts)?;
        let plan = Plan::new(&tree, self.block_size);
        let meta_bytes = HEAD_BYTES + plan.bytes();
        let mut extents = vec![Extent { path: META_FILE.into(), size_bytes: meta_bytes }];
        let mut first_blocks = vec![0; parts.len()];
        let mut end = meta_bytes;
        let too_large = || Error::StoreDamaged {
            path: path.to_owned(),
            reason: "the image is larger than its format can address",
        };
        let block =
            |bytes: u64| u32::try_from(bytes / self.block_size.bytes()).map_err(|_| too_large());
        // Layers of which nothing is left, and those that only delete, are no part of the disk.
        for part in plan.used_parts() {
            let diff_id = parts[usize::from(part.0)];
            let layer = self.layer_path(diff_id);
            let size_bytes = fs::metadata(&layer)
                .map_err(|source| Error::ReadStore { path: layer.clone(), source })?
                .len();
            first_blocks[usize::from(part.0)] = block(end)?;
            end += size_bytes;
            let name = layer.file_name().map(PathBuf::from).unwrap_or_default();
            extents.push(Extent { path: Path::new("../../layers").join(name), size_bytes });
        }
        let superblock = Superblock {
            block_size: self.block_size,
            blocks: block(end)?,
            inodes: plan.inodes(),
            meta_block: block(HEAD_BYTES)?,
            root_nid: plan.root_nid(),
            uuid: digest.uuid(),
        };
        let write = || {
            let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
            file.write_all(&superblock.encode())?;
            plan.write(&mut file, superblock.meta_block, &|Part(part)| {
                first_blocks[usize::from(part)]
            })?;
            file.into_inner()?.sync_all()
        };
        write().map_err(|source| write_fault(path, source))?;
        Ok(extents)
    }

    fn merged_tree(&self, diff_ids: &[DiffId], parts: &[DiffId]) -> Result<Tree, Error> {
        let mut merger = Merger::new();
        for diff_id in diff_ids {
            let position = parts.iter().position(|part| part == diff_id).unwrap_or_default();
            let part = Part(u16::try_from(position).unwrap_or(u16::MAX));
            let layer = read::layer_tree(&self.layer_path(*diff_id), part)?;
            merger.apply(layer, part).map_err(|misfit| Error::MergeLayers {
                layer: *diff_id,
                entry: misfit.entry,
                reason: misfit.reason,
            })?;
        }
        Ok(merger.into_tree())
    }
}
