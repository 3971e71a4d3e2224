//! The manifest: what a snapshot is of, and what its files hold.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Component, Path},
};

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Digest, Error, Result};

/// Format that this version writes and reads.
pub(crate) const VERSION: u32 = 1;

/// Name of the manifest's file.
pub(crate) const MANIFEST: &str = "snapshot.json";

/// What a snapshot is of. Its bytes, as they are stored, are what its id is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Manifest {
    /// Format; see `docs/formats/snapshot.md`.
    pub version: u32,
    /// Name it was taken under; the one it has now may differ.
    pub name: String,
    /// When it was taken.
    pub created_at: DateTime<Utc>,
    /// Name of the sandbox it was taken of.
    pub source: String,
    /// The image beneath the disk.
    pub image: ImagePin,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// The sandbox's definition, as its caller wrote it.
    pub definition: Value,
    /// The files, by path within the snapshot.
    pub files: BTreeMap<String, FileRecord>,
}

/// What a caller says of a snapshot; the rest is found out.
#[derive(Debug, Clone)]
pub struct NewManifest {
    /// Name of the sandbox it was taken of.
    pub source: String,
    /// The image beneath the disk.
    pub image: ImagePin,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// The sandbox's definition.
    pub definition: Value,
}

/// An image, by what it is and not only by what it was called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePin {
    /// What the sandbox calls it.
    pub reference: String,
    /// Digest of its manifest, `sha256:…`.
    pub manifest_digest: String,
}

/// A file of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its length with all holes.
    pub size_bytes: u64,
    /// Digest of its content.
    pub digest: Digest,
}

impl Manifest {
    pub(crate) fn new(name: &str, new: NewManifest, files: BTreeMap<String, FileRecord>) -> Self {
        let NewManifest { source, image, labels, definition } = new;
        let created_at = Utc::now().trunc_subsecs(3);
        let name = name.to_owned();
        Self { version: VERSION, name, created_at, source, image, labels, definition, files }
    }

    /// Reads the manifest of a snapshot's directory; gives its id, too.
    pub(crate) fn read(directory: &Path) -> Result<(Self, Digest)> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let path = directory.join(MANIFEST);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let unreadable = |source| Error::Manifest { path: path.clone(), source };
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(unreadable)?;
        if version != VERSION {
            return Err(Error::Version { path, found: version, known: VERSION });
        }
        let manifest: Self = serde_json::from_slice(&bytes).map_err(unreadable)?;
        match manifest.files.keys().find(|name| !is_plain(name)) {
            // A manifest may come from an enemy: what it says is never a path outside.
            Some(_) => Err(Error::Unlike { path, what: "it names a file outside of the snapshot" }),
            None => Ok((manifest, Digest::of(&bytes))),
        }
    }

    /// Digest of the image that the snapshot in `directory` needs, in whatever format it is: every
    /// format says it in the same place.
    pub(crate) fn read_pin(directory: &Path) -> Result<Option<String>> {
        #[derive(Deserialize)]
        struct Pinning {
            image: Pin,
        }
        #[derive(Deserialize)]
        struct Pin {
            manifest_digest: String,
        }
        let path = directory.join(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => {
                let pinning: Option<Pinning> = serde_json::from_slice(&bytes).ok();
                Ok(pinning.map(|pinning| pinning.image.manifest_digest))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file("read", path)(error)),
        }
    }

    pub(crate) fn to_bytes(&self, path: &Path) -> Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .map_err(|source| Error::Manifest { path: path.to_owned(), source })?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}

/// Whether a name is a path down from where it stands.
fn is_plain(name: &str) -> bool {
    let path = Path::new(name);
    let down = path.components().all(|part| matches!(part, Component::Normal(_)));
    down && path.file_name().is_some() && name != MANIFEST && !name.contains(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_lead_down() {
        for (name, plain) in [
            ("upper.ext4", true),
            ("checkpoint/memory", true),
            ("", false),
            ("/etc/passwd", false),
            ("../upper.ext4", false),
            ("a/../../b", false),
            (MANIFEST, false),
            ("a\nb", false),
        ] {
            assert_eq!(is_plain(name), plain, "{name:?}");
        }
    }
}
