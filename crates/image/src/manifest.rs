//! Manifests and indexes: the documents that say which blobs make up an image.
//!
//! OCI and Docker spell the same documents with different media types; both are read by their shape, so a
//! wrong media type cannot make one pass for the other.

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Platform};

/// Largest manifest or index accepted; registries refuse to store larger ones (distribution: 4 MiB).
pub(crate) const MAX_MANIFEST_BYTES: u64 = 4 << 20;

/// Largest configuration accepted: the biggest seen in public images are below 1 MiB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 8 << 20;

/// Most layers accepted; container engines stop at 127.
pub(crate) const MAX_LAYERS: usize = 512;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What a client says it takes when it asks a registry for a manifest.
pub(crate) const ACCEPTED_MANIFESTS: [&str; 4] =
    [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];

/// A pointer to a blob: its digest, and its size before it is fetched.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<Annotations>,
}

/// The annotations that are read here; others are ignored.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Annotations {
    /// The tag of an image in an OCI layout, or its whole name in archives of some tools.
    #[serde(rename = "org.opencontainers.image.ref.name", skip_serializing_if = "Option::is_none")]
    pub(crate) ref_name: Option<String>,
    /// The full name that containerd writes beside it.
    #[serde(rename = "io.containerd.image.name", skip_serializing_if = "Option::is_none")]
    pub(crate) image_name: Option<String>,
    /// `attestation-manifest` marks entries of an index that are not images.
    #[serde(rename = "vnd.docker.reference.type", skip_serializing_if = "Option::is_none")]
    pub(crate) reference_type: Option<String>,
}

/// One image: a configuration and its layers, lowest first.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    /// Means nothing here; kept for saving the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) annotations: Option<serde_json::Value>,
}

/// Several images behind one name, usually one a platform.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

/// A document that is either of the two.
#[derive(Debug, Clone)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Box<Manifest>),
}

impl Document {
    /// Reads a document by its shape.
    ///
    /// # Errors
    /// [`Error::ParseManifest`] when it is neither, or when it is a schema that carries no diff ids.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Shape {
            manifests: Option<serde::de::IgnoredAny>,
        }
        let fault = |source: serde_json::Error| Error::ParseManifest {
            digest: Digest::of(bytes),
            source: source.into(),
        };
        let shape: Shape = serde_json::from_slice(bytes).map_err(fault)?;
        if shape.manifests.is_some() {
            return serde_json::from_slice(bytes).map(Self::Index).map_err(fault);
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(fault)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(Error::TooManyLayers {
                digest: Digest::of(bytes),
                count: manifest.layers.len(),
                limit: MAX_LAYERS,
            });
        }
        Ok(Self::Manifest(manifest.into()))
    }
}

impl Index {
    /// The entry that fits `platform`; the first one wins, as every engine does.
    pub(crate) fn choose(&self, platform: &Platform) -> Option<&Descriptor> {
        let images = || self.manifests.iter().filter(|entry| entry.is_image());
        images()
            .find(|entry| entry.platform.as_ref().is_some_and(|offered| platform.accepts(offered)))
            .or_else(|| images().find(|entry| entry.platform.is_none()))
    }

    /// What there is to choose from, for the error that says nothing fits.
    pub(crate) fn platforms(&self) -> Vec<String> {
        self.manifests
            .iter()
            .filter(|entry| entry.is_image())
            .filter_map(|entry| entry.platform.as_ref().map(ToString::to_string))
            .collect()
    }
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, digest, size, platform: None, annotations: None }
    }

    /// False for attestations and signatures that travel in an image's index.
    pub(crate) fn is_image(&self) -> bool {
        self.annotations.as_ref().is_none_or(|known| known.reference_type.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn documents_are_told_apart_by_shape() {
        let index = format!(
            r#"{{"mediaType":"{OCI_MANIFEST}","manifests":[
                {{"digest":"{D}","size":1,"platform":{{"os":"linux","architecture":"arm64"}}}},
                {{"digest":"{D}","size":2,"platform":{{"os":"linux","architecture":"amd64"}},
                  "annotations":{{"vnd.docker.reference.type":"attestation-manifest"}}}},
                {{"digest":"{D}","size":3,"platform":{{"os":"linux","architecture":"amd64"}}}}]}}"#
        );
        let Document::Index(index) = Document::parse(index.as_bytes()).unwrap() else {
            panic!("an index, whatever its media type says");
        };
        assert_eq!(index.choose(&Platform::new("linux", "amd64")).map(|entry| entry.size), Some(3));
        assert!(index.choose(&Platform::new("linux", "s390x")).is_none());
        assert_eq!(index.platforms(), ["linux/arm64", "linux/amd64"]);
        let manifest =
            format!(r#"{{"schemaVersion":2,"config":{{"digest":"{D}","size":1}},"layers":[]}}"#);
        assert!(matches!(Document::parse(manifest.as_bytes()), Ok(Document::Manifest(_))));
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in [
            "",
            "<html></html>",
            "[]",
            r#"{"schemaVersion":1,"fsLayers":[]}"#,
            r#"{"manifests":{}}"#,
            r#"{"schemaVersion":2,"config":{"digest":"sha256:../x","size":1},"layers":[]}"#,
            r#"{"schemaVersion":2,"config":{"digest":"x","size":-1},"layers":[]}"#,
        ] {
            assert!(Document::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
