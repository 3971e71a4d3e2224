//! Doors for the fuzzer to what is private: each takes bytes, and panics where a promise is broken.
//!
//! Behind the feature `fuzz`; no part of the API.

use std::io::{self, Read as _};

use tempfile::NamedTempFile;

use crate::config::ImageConfig;
use crate::erofs::read;
use crate::layer::record::Archive;
use crate::layer::{self, Promise, Target};
use crate::manifest::Document;
use crate::merge::Merger;
use crate::tree::Part;
use crate::{BlockSize, Error, LayerError, Limits, Platform};

/// Makes a layer of `blob`. What can be made can be read back, laid over itself, and unpacked again to the byte.
///
/// # Errors
/// What is wrong with the layer.
///
/// # Panics
/// When one of the promises is broken.
pub fn layer(blob: &[u8]) -> Result<(), LayerError> {
    let fault = |source| LayerError::Read { source };
    let file = NamedTempFile::new().map_err(fault)?;
    let record = NamedTempFile::new().map_err(fault)?;
    let target = Target {
        file: file.as_file(),
        path: file.path(),
        record: record.as_file(),
        block_size: BlockSize::B512,
        limits: Limits::default().with_layer_bytes(64 << 20).with_layer_entries(10_000),
    };
    let facts = layer::build(blob, Promise::default(), target, &|_| {})?;
    assert_eq!(facts.blob_bytes, blob.len() as u64, "all of it was read");
    let mut merger = Merger::new();
    for part in [Part(0), Part(1)] {
        let tree = read::layer_tree(file.path(), part).expect("what was written is read");
        // A link to a layer below finds nothing below the first one; that is a fault of the image.
        if merger.apply(tree, part).is_err() {
            break;
        }
    }
    let mut unpacked = Vec::new();
    let archive = || Archive::open(file.reopen()?, record.reopen()?);
    archive()
        .and_then(|mut archive| archive.read_to_end(&mut unpacked))
        .expect("what was recorded is read");
    assert_eq!(crate::Digest::of(&unpacked), facts.diff_id.0, "the same archive comes back");
    Ok(())
}

/// Reads `text` as a manifest or an index, and as a configuration.
///
/// # Errors
/// What is wrong with it as a manifest.
///
/// # Panics
/// When a manifest that was read is not what is written of it.
pub fn manifest(text: &[u8]) -> Result<(), Error> {
    // Both kinds of documents come from the same registry; neither fault is of interest beside the other.
    let _ = ImageConfig::parse(text);
    match Document::parse(text)? {
        Document::Index(index) => {
            let chosen = index.choose(&Platform::host_linux()).is_some();
            assert!(!chosen || !index.manifests.is_empty());
            index.platforms();
        }
        Document::Manifest(manifest) => {
            let written = serde_json::to_vec(&manifest).map_err(io::Error::from);
            let read = Document::parse(&written.expect("a manifest can be written"));
            let Ok(Document::Manifest(read)) = read else {
                panic!("a manifest that was written is no manifest")
            };
            assert_eq!(read.layers.len(), manifest.layers.len());
            assert_eq!(read.config.digest, manifest.config.digest);
        }
    }
    Ok(())
}
