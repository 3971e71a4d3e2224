//! Inventory: every file and directory of a store, what it is, whom it belongs to, and what still needs it.
//!
//! What a collection removes and what a report says it would remove is decided here, once.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::ImageStore;
use super::files::{TEMPORARY_PREFIX, read_fault, read_optional};
use super::layers::{LAYER_SUFFIX, PARTIAL_SUFFIX, RECORD_SUFFIX};
use super::publish::{CONFIG_FILE, DISK_FILE, MANIFEST_FILE, META_FILE};
use crate::{DiffId, Digest, Error, Image, ImageConfig};

/// Kinds of files in a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum StorePart {
    /// Directories themselves.
    Directories,
    /// Manifests and configurations.
    Documents,
    /// File systems of layers, which images share.
    Layers,
    /// Locks.
    Locks,
    /// Merged trees and disk descriptors of images.
    Metadata,
    /// Names of images.
    Names,
    /// Files that are not the store's.
    Other,
    /// What archives of layers had besides file data, for saving them again.
    Records,
    /// Files that are being made, or that a crash left.
    Unfinished,
}

impl StorePart {
    /// Every part, in the order of a report.
    pub const ALL: [Self; 9] = [
        Self::Layers,
        Self::Records,
        Self::Metadata,
        Self::Documents,
        Self::Names,
        Self::Unfinished,
        Self::Locks,
        Self::Directories,
        Self::Other,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Directories => "directories",
            Self::Documents => "documents",
            Self::Layers => "layers",
            Self::Locks => "locks",
            Self::Metadata => "metadata",
            Self::Names => "names",
            Self::Other => "other",
            Self::Records => "records",
            Self::Unfinished => "unfinished",
        }
    }
}

/// One file or directory.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) path: PathBuf,
    pub(super) part: StorePart,
    pub(super) owner: Owner,
    /// Bytes it takes on disk: holes not counted, the last block in full.
    pub(super) bytes: u64,
}

/// Whose it is: it goes when its owner goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Image(Digest),
    Layer(DiffId),
    /// Half made, by somebody who is gone if nothing is being made.
    Nobody,
    Store,
}

impl Item {
    /// Whether it is a layer's file system, of which there is one per layer.
    pub(super) fn is_layer(&self) -> bool {
        self.part == StorePart::Layers
    }
}

/// Everything in a store.
#[derive(Debug)]
pub(super) struct Inventory {
    /// What is in a directory comes before the directory.
    pub(super) items: Vec<Item>,
}

impl Inventory {
    pub(super) fn take(store: &ImageStore) -> Result<Self, Error> {
        let mut items = Vec::new();
        if store.root.exists() {
            walk(&store.root, &mut Vec::new(), &mut items)?;
        }
        Ok(Self { items })
    }

    /// Images that are there, complete or not.
    pub(super) fn images(&self) -> impl Iterator<Item = Digest> {
        self.items.iter().filter_map(|item| match (item.owner, item.part) {
            (Owner::Image(digest), StorePart::Directories) => Some(digest),
            _ => None,
        })
    }
}

/// Images that are needed, and the layers that those need.
#[derive(Debug, Default)]
pub(super) struct Reach {
    pub(super) images: HashSet<Digest>,
    pub(super) layers: HashSet<DiffId>,
}

impl Reach {
    /// From every name and every pin.
    pub(super) fn of(store: &ImageStore, pinned: &[Digest]) -> Result<Self, Error> {
        let named = store.refs()?.into_iter().map(|(_, digest)| digest);
        Self::from(store, named.chain(pinned.iter().copied()))
    }

    /// From every image that is there.
    pub(super) fn of_all(store: &ImageStore) -> Result<Self, Error> {
        let names = store.names_in(&store.manifests_dir())?;
        Self::from(store, names.iter().filter_map(|name| Digest::from_file_stem(name)))
    }

    pub(super) fn add(&mut self, store: &ImageStore, image: Digest) -> Result<(), Error> {
        if self.images.insert(image) {
            self.layers.extend(layers_of(store, &image)?);
        }
        Ok(())
    }

    pub(super) fn is_reclaimable(&self, item: &Item) -> bool {
        match &item.owner {
            Owner::Image(digest) => !self.images.contains(digest),
            Owner::Layer(diff_id) => !self.layers.contains(diff_id),
            Owner::Nobody => true,
            Owner::Store => false,
        }
    }

    fn from(store: &ImageStore, images: impl Iterator<Item = Digest>) -> Result<Self, Error> {
        let mut reach = Self::default();
        images.into_iter().try_for_each(|image| reach.add(store, image))?;
        Ok(reach)
    }
}

/// The layers of an image: those in its configuration, which is all of them, and those behind its disk, so that an
/// image whose configuration is damaged loses nothing more.
pub(super) fn layers_of(store: &ImageStore, image: &Digest) -> Result<HashSet<DiffId>, Error> {
    let config = store.manifests_dir().join(image.file_stem()).join(CONFIG_FILE);
    let config = read_optional(&config)?.and_then(|bytes| ImageConfig::parse(&bytes).ok());
    let mut layers: HashSet<DiffId> = config.into_iter().flat_map(|(_, ids)| ids).collect();
    for path in Image::extent_names(store, image)? {
        layers.extend(path.file_name().and_then(|name| layer_of(name.to_str()?)));
    }
    Ok(layers)
}

/// Lists what is beneath `path`, whose components below the store are `inside`, then `path` itself.
fn walk(path: &Path, inside: &mut Vec<String>, items: &mut Vec<Item>) -> Result<(), Error> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        // Finished or removed by another process while it was looked for.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(read_fault(path, source)),
    };
    if metadata.is_dir() {
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(read_fault(path, source)),
        };
        for entry in entries {
            let entry = entry.map_err(|source| read_fault(path, source))?;
            inside.push(entry.file_name().to_string_lossy().into_owned());
            walk(&entry.path(), inside, items)?;
            inside.pop();
        }
    }
    let names: Vec<&str> = inside.iter().map(String::as_str).collect();
    let (part, owner) = classify(&names);
    let part = if metadata.is_dir() { StorePart::Directories } else { part };
    items.push(Item { path: path.to_owned(), part, owner, bytes: metadata.blocks() * 512 });
    Ok(())
}

/// What lies at a path below the store, and whose it is.
fn classify(path: &[&str]) -> (StorePart, Owner) {
    let half_made = |name: &&str| {
        name.starts_with(TEMPORARY_PREFIX)
            || name.ends_with(PARTIAL_SUFFIX)
            || name.contains(&format!("{PARTIAL_SUFFIX}."))
    };
    match path {
        [] | ["layers" | "manifests" | "refs"] => (StorePart::Directories, Owner::Store),
        ["lock"] => (StorePart::Locks, Owner::Store),
        ["layers" | "manifests" | "refs", name, ..] if half_made(name) => {
            (StorePart::Unfinished, Owner::Nobody)
        }
        ["refs", _] => (StorePart::Names, Owner::Store),
        ["layers", name] => match layer_of(name) {
            Some(layer) if name.ends_with(LAYER_SUFFIX) => (StorePart::Layers, Owner::Layer(layer)),
            Some(layer) if name.ends_with(RECORD_SUFFIX) => {
                (StorePart::Records, Owner::Layer(layer))
            }
            _ => (StorePart::Other, Owner::Store),
        },
        ["manifests", image, rest @ ..] => {
            let Some(image) = Digest::from_file_stem(image) else {
                return (StorePart::Other, Owner::Store);
            };
            let part = match rest {
                [] => StorePart::Directories,
                [MANIFEST_FILE | CONFIG_FILE] => StorePart::Documents,
                [META_FILE | DISK_FILE] => StorePart::Metadata,
                _ => StorePart::Other,
            };
            (part, Owner::Image(image))
        }
        _ => (StorePart::Other, Owner::Store),
    }
}

/// The layer that a file of this name belongs to: `sha256-<diff id>.<block size>.<ending>`.
fn layer_of(name: &str) -> Option<DiffId> {
    let (stem, _) = name.split_once('.')?;
    Digest::from_file_stem(stem).map(DiffId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_a_store_is_something() {
        let digest = Digest::of(b"");
        let stem = digest.file_stem();
        let (image, layer) = (Owner::Image(digest), Owner::Layer(DiffId(digest)));
        let nobody = (StorePart::Unfinished, Owner::Nobody);
        for (path, expected) in [
            (String::new(), (StorePart::Directories, Owner::Store)),
            ("lock".into(), (StorePart::Locks, Owner::Store)),
            ("refs/debian%3A12".into(), (StorePart::Names, Owner::Store)),
            ("refs/.new-1".into(), nobody),
            (format!("layers/{stem}.512.erofs"), (StorePart::Layers, layer)),
            (format!("layers/{stem}.512.record"), (StorePart::Records, layer)),
            (format!("layers/{stem}.512.erofs.partial"), nobody),
            (format!("layers/{stem}.512.erofs.partial.record"), nobody),
            ("layers/.new-1.partial".into(), nobody),
            ("layers/notes.txt".into(), (StorePart::Other, Owner::Store)),
            (format!("manifests/{stem}"), (StorePart::Directories, image)),
            (format!("manifests/{stem}/config.json"), (StorePart::Documents, image)),
            (format!("manifests/{stem}/meta.erofs"), (StorePart::Metadata, image)),
            (format!("manifests/{stem}.partial"), nobody),
            ("manifests/.new-1/manifest.json".into(), nobody),
            ("elsewhere".into(), (StorePart::Other, Owner::Store)),
        ] {
            let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
            assert_eq!(classify(&names), expected, "{path}");
        }
    }
}
