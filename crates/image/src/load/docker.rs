//! Docker archives: `manifest.json` with paths of configurations and layers, as `docker save` writes them.

use serde::Deserialize;

use super::Found;
use super::members::Members;
use crate::manifest::{
    Descriptor, MAX_CONFIG_BYTES, MAX_LAYERS, MAX_MANIFEST_BYTES, Manifest, OCI_CONFIG, OCI_LAYER,
    OCI_MANIFEST,
};
use crate::{Digest, Error, ImageConfig, Reference};

/// One image in `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images that the archive's table names.
pub(super) fn images(members: &Members) -> Result<Vec<Found>, Error> {
    let bytes = members.document("manifest.json", MAX_MANIFEST_BYTES)?;
    let entries: Vec<Entry> = serde_json::from_slice(&bytes).map_err(|source| {
        Error::ParseManifest { digest: Digest::of(&bytes), source: source.into() }
    })?;
    entries.into_iter().map(|entry| image(members, entry)).collect()
}

fn image(members: &Members, entry: Entry) -> Result<Found, Error> {
    let config = members.document(&entry.config, MAX_CONFIG_BYTES)?;
    let (_, diff_ids) = ImageConfig::parse(&config)?;
    if entry.layers.len() > MAX_LAYERS {
        return Err(Error::TooManyLayers {
            digest: Digest::of(&config),
            count: entry.layers.len(),
            limit: MAX_LAYERS,
        });
    }
    // The archive has no manifest. One that lists the unpacked layers says the same, the same way every time.
    let mut layers = Vec::with_capacity(entry.layers.len());
    for (member, diff_id) in entry.layers.iter().zip(&diff_ids) {
        layers.push(Descriptor::new(OCI_LAYER, diff_id.0, members.size(member)?));
    }
    let manifest = Manifest {
        schema_version: 2,
        media_type: OCI_MANIFEST.into(),
        config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
        layers,
        annotations: None,
    };
    let names: Vec<Reference> =
        entry.repo_tags.unwrap_or_default().iter().filter_map(|name| name.parse().ok()).collect();
    let label = names.first().map_or_else(|| entry.config.clone(), Reference::familiar);
    let bytes = serde_json::to_vec(&manifest).map_err(|source| Error::ParseManifest {
        digest: Digest::of(&config),
        source: source.into(),
    })?;
    let members = entry.layers.into_iter().map(|member| (member, None)).collect();
    Found::new(label, bytes, config, members, names)
}
