//! OCI layouts: `index.json` and blobs by digest (image-spec, "Image Layout").

use super::members::Members;
use super::{Found, verified};
use crate::manifest::{Annotations, Descriptor, Document, Index, MAX_MANIFEST_BYTES};
use crate::{Digest, Error, Platform, Reference};

/// Deepest nesting of indexes; one level occurs, two are conceivable.
const MAX_NESTING: usize = 4;

/// The images that the layout's index names, one for each name and one for all that have none.
pub(super) fn images(members: &Members) -> Result<Vec<Found>, Error> {
    let bytes = members.document("index.json", MAX_MANIFEST_BYTES)?;
    let Document::Index(index) = Document::parse(&bytes)? else {
        return Err(Error::ArchiveEmpty { archive: members.origin().to_owned() });
    };
    let mut labels: Vec<Option<String>> = Vec::new();
    for entry in index.manifests.iter().filter(|entry| entry.is_image()) {
        let label = label(entry);
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    labels
        .into_iter()
        .map(|wanted| {
            let manifests = index.manifests.iter().filter(|entry| label(entry) == wanted);
            let index = Index { manifests: manifests.cloned().collect() };
            let label = wanted.clone().unwrap_or_else(|| members.origin().display().to_string());
            let names = wanted.as_deref().and_then(full_name).into_iter().collect();
            image(members, index, label, names)
        })
        .collect()
}

/// Follows indexes to the manifest for this host.
fn image(
    members: &Members,
    mut index: Index,
    label: String,
    names: Vec<Reference>,
) -> Result<Found, Error> {
    let platform = Platform::host_linux();
    for _ in 0..MAX_NESTING {
        let Some(entry) = index.choose(&platform) else {
            return Err(Error::NoPlatform {
                image: label,
                wanted: platform.into(),
                offered: index.platforms(),
            });
        };
        let bytes = verified(members, &blob_member(entry.digest), entry, "the manifest")?;
        match Document::parse(&bytes)? {
            Document::Index(inner) => index = inner,
            Document::Manifest(manifest) => {
                let member = blob_member(manifest.config.digest);
                let config = verified(members, &member, &manifest.config, "the configuration")?;
                let layers = manifest
                    .layers
                    .into_iter()
                    .map(|layer| (blob_member(layer.digest), Some(layer)))
                    .collect();
                return Found::new(label, bytes, config, layers, names);
            }
        }
    }
    Err(Error::NestedTooDeep { image: label, limit: MAX_NESTING })
}

fn blob_member(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn label(entry: &Descriptor) -> Option<String> {
    let Annotations { ref_name, image_name, .. } = entry.annotations.as_ref()?;
    image_name.as_ref().or(ref_name.as_ref()).cloned()
}

/// The annotation as a name. Many tools write a bare tag there, which names no image.
fn full_name(label: &str) -> Option<Reference> {
    label.contains([':', '/']).then(|| label.parse().ok()).flatten()
}
