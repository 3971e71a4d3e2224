//! A small OCI image from a folder: one layer, one manifest, written with `tar` and a few JSON
//! documents.
//!
//! For the image that quickstart and tests start from; real images come from real tools. The same
//! folder and configuration give the same bytes. Format: OCI image-spec 1.1, image-layout.md.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::{digest, process::Tool};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// One tag of a layout and the `config` object of its image (`Env`, `Cmd`, ...).
#[derive(Debug)]
pub(crate) struct Tag {
    /// Name within the layout.
    pub(crate) name: &'static str,
    /// What the image says about running it.
    pub(crate) config: Value,
}

/// Writes an OCI layout of one image into the folder `layout`; `root` is its only layer.
pub(crate) fn write_layout(root: &Path, tag: &Tag, layout: &Path) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).with_context(|| format!("create {}", blobs.display()))?;
    let (layer, diff_id) = write_layer(root, &blobs)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "config": tag.config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = write_blob(&blobs, CONFIG, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": config,
        "layers": [layer],
    });
    let mut manifest = write_blob(&blobs, MANIFEST, &manifest)?;
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": tag.name });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest] });
    write(&layout.join("index.json"), &index)?;
    write(&layout.join("oci-layout"), &json!({ "imageLayoutVersion": "1.0.0" }))
}

/// Packs a layout into the archive `file`.
pub(crate) fn write_archive(layout: &Path, file: &Path) -> Result<()> {
    tar(layout, file)
}

/// Returns the layer's descriptor and its diff id, which are alike: it is not compressed.
fn write_layer(root: &Path, blobs: &Path) -> Result<(Value, String)> {
    let partial = blobs.join("partial");
    tar(root, &partial)?;
    let hash = digest::of_file(&partial)?;
    let size = fs::metadata(&partial).context("measure the layer")?.len();
    fs::rename(&partial, blobs.join(&hash)).context("name the layer")?;
    let digest = format!("sha256:{hash}");
    Ok((json!({ "mediaType": LAYER, "digest": digest, "size": size }), digest))
}

fn write_blob(blobs: &Path, media_type: &str, value: &Value) -> Result<Value> {
    let bytes = value.to_string();
    let hash = digest::of_bytes(bytes.as_bytes());
    write(&blobs.join(&hash), value)?;
    let digest = format!("sha256:{hash}");
    Ok(json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() }))
}

fn tar(folder: &Path, file: &Path) -> Result<()> {
    Tool::new("tar")
        .args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner"])
        .args(["--owner=0", "--group=0", "--file"])
        .arg(file)
        .arg("--directory")
        .arg(folder)
        .arg(".")
        .run()
}

fn write(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, value.to_string()).with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_names_blobs_that_are_there_with_their_digest_and_size() {
        let folder = tempfile::tempdir().unwrap();
        let (root, layout) = (folder.path().join("root"), folder.path().join("layout"));
        fs::create_dir(&root).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        let tag = Tag { name: "latest", config: json!({ "Env": ["NAME=value"] }) };
        write_layout(&root, &tag, &layout).unwrap();

        let index = read(&layout.join("index.json"));
        let manifest = read(&checked(&layout, &index["manifests"][0]));
        let config = read(&checked(&layout, &manifest["config"]));
        checked(&layout, &manifest["layers"][0]);
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        assert_eq!(config["config"]["Env"][0], "NAME=value");
    }

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn checked(layout: &Path, descriptor: &Value) -> std::path::PathBuf {
        let hash = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = layout.join("blobs/sha256").join(hash);
        assert_eq!(digest::of_file(&path).unwrap(), hash);
        assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
        path
    }
}
