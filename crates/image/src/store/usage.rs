//! Usage: what takes the space of a store, and what a collection would give back.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use super::ImageStore;
use super::inventory::{Inventory, Owner, Reach, StorePart, layers_of};
use crate::{DiffId, Digest, Error, Reference};

/// Everything a store takes on disk. The parts, and so the total, are what `du` would say.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreUsage {
    /// Bytes of disk in all.
    pub total_bytes: u64,
    /// Bytes that a collection would give back, if nothing is being made.
    pub reclaimable_bytes: u64,
    /// By what the files are; every part, also those that are empty.
    pub parts: Vec<PartUsage>,
    /// By image, those with names first, ordered by name.
    pub images: Vec<ImageUsage>,
}

/// What the files of one kind take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct PartUsage {
    /// Which kind.
    pub part: StorePart,
    /// How many there are.
    pub count: u64,
    /// Bytes of disk.
    pub bytes: u64,
    /// Those of them that a collection would give back.
    pub reclaimable_bytes: u64,
}

/// What one image takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageUsage {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Names that stand for it.
    pub references: Vec<Reference>,
    /// Bytes that removing this image alone would give back: its documents, metadata, and the layers only it has.
    pub own_bytes: u64,
    /// Bytes of layers that other images have too.
    pub shared_bytes: u64,
    /// Somebody needs it, whether it has a name or not.
    pub is_pinned: bool,
    /// When it was last pulled, loaded or held.
    pub last_used: Option<SystemTime>,
}

impl ImageStore {
    /// Accounts for every byte of the store. Takes no lock: what other processes are making may be counted in part.
    ///
    /// # Errors
    /// [`Error::ReadStore`].
    pub fn usage(&self, pinned: &[Digest]) -> Result<StoreUsage, Error> {
        let inventory = Inventory::take(self)?;
        let reach = Reach::of(self, pinned)?;
        let mut parts: Vec<PartUsage> = StorePart::ALL.into_iter().map(PartUsage::empty).collect();
        for item in &inventory.items {
            if let Some(part) = parts.iter_mut().find(|part| part.part == item.part) {
                part.count += 1;
                part.bytes += item.bytes;
                part.reclaimable_bytes += if reach.is_reclaimable(item) { item.bytes } else { 0 };
            }
        }
        Ok(StoreUsage {
            total_bytes: parts.iter().map(|part| part.bytes).sum(),
            reclaimable_bytes: parts.iter().map(|part| part.reclaimable_bytes).sum(),
            parts,
            images: self.image_usage(&inventory, pinned)?,
        })
    }

    fn image_usage(
        &self,
        inventory: &Inventory,
        pinned: &[Digest],
    ) -> Result<Vec<ImageUsage>, Error> {
        let mut own: BTreeMap<Digest, u64> = BTreeMap::new();
        let mut layer_bytes: HashMap<DiffId, u64> = HashMap::new();
        for item in &inventory.items {
            match item.owner {
                Owner::Image(digest) => *own.entry(digest).or_default() += item.bytes,
                Owner::Layer(layer) => *layer_bytes.entry(layer).or_default() += item.bytes,
                Owner::Nobody | Owner::Store => {}
            }
        }
        let mut users: HashMap<DiffId, u32> = HashMap::new();
        let mut layers = HashMap::new();
        for digest in own.keys() {
            let of_image = layers_of(self, digest)?;
            of_image.iter().for_each(|layer| *users.entry(*layer).or_default() += 1);
            layers.insert(*digest, of_image);
        }
        let refs = self.refs()?;
        let mut images: Vec<ImageUsage> = own
            .into_iter()
            .map(|(digest, bytes)| {
                let sum = |shared: bool| -> u64 {
                    let of_image = layers[&digest].iter();
                    let chosen = of_image.filter(|layer| (users[*layer] > 1) == shared);
                    chosen.filter_map(|layer| layer_bytes.get(layer)).sum()
                };
                let names = refs.iter().filter(|(_, named)| *named == digest);
                ImageUsage {
                    digest,
                    references: names.map(|(name, _)| name.clone()).collect(),
                    own_bytes: bytes + sum(false),
                    shared_bytes: sum(true),
                    is_pinned: pinned.contains(&digest),
                    last_used: self.last_used(&digest),
                }
            })
            .collect();
        images.sort_by_cached_key(|image| (image.references.is_empty(), image.references.clone()));
        Ok(images)
    }
}

impl PartUsage {
    fn empty(part: StorePart) -> Self {
        Self { part, count: 0, bytes: 0, reclaimable_bytes: 0 }
    }
}
