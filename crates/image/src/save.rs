//! Saving: images of the store as an OCI archive, an OCI layout or a docker-archive.
//!
//! A layer's archive is written again to the byte, from its file system and its record, so diff ids stay what they
//! were. Compressed layers are made first, in files without a name: an archive's headers tell sizes. [`output`] knows
//! how members get to their place, this module which there are.

mod output;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::{fmt, thread};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::output::Output;
use crate::layer::record::Archive;
use crate::manifest::{
    Annotations, Descriptor, Document, Manifest, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD, OCI_MANIFEST,
};
use crate::store::publish::{CONFIG_FILE, MANIFEST_FILE};
use crate::store::read_optional;
use crate::{DiffId, Digest, Error, Image, ImageStore, Reference};

/// Layers compressed at the same time.
const PARALLEL_LAYERS: usize = 2;

/// How images are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SaveOptions {
    /// What is written.
    pub format: ArchiveFormat,
    /// How layers are compressed. Layers of a docker-archive never are.
    pub compression: LayerCompression,
}

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ArchiveFormat {
    /// The archive that `docker save` writes and every `docker load` reads.
    Docker,
    /// An OCI layout in a tar archive.
    #[default]
    Oci,
    /// An OCI layout as a directory.
    OciLayout,
}

/// How layers are compressed. The same image gives the same bytes each time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LayerCompression {
    /// As every engine reads.
    #[default]
    Gzip,
    /// Not at all.
    None,
    /// Faster and smaller; engines from 2021 on read it.
    Zstd,
}

/// Where images are saved to.
pub enum SaveTarget {
    /// A file, or for [`ArchiveFormat::OciLayout`] a directory, that is there whole or not at all.
    Path(PathBuf),
    /// A stream such as standard output; not for [`ArchiveFormat::OciLayout`].
    Stream(Box<dyn Write + Send>),
}

impl fmt::Debug for SaveTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => f.debug_tuple("Path").field(path).finish(),
            Self::Stream(_) => f.debug_tuple("Stream").finish_non_exhaustive(),
        }
    }
}

impl SaveOptions {
    /// The same options with another format.
    #[must_use]
    pub fn with_format(mut self, format: ArchiveFormat) -> Self {
        self.format = format;
        self
    }

    /// The same options with another compression.
    #[must_use]
    pub fn with_compression(mut self, compression: LayerCompression) -> Self {
        self.compression = compression;
        self
    }
}

impl ImageStore {
    /// Writes images under the names they are asked for by. The configuration is written as it came; the manifest
    /// of an OCI image anew, as its layers are compressed anew. Blocks: run it where blocking is allowed.
    ///
    /// # Errors
    /// [`Error::NotCached`], [`Error::LayerIncomplete`] for images of a store that kept no records,
    /// [`Error::ArchiveExists`], [`Error::WriteArchive`], or what reading the store reports. Nothing is left at a path.
    pub fn save(
        &self,
        references: &[Reference],
        target: SaveTarget,
        options: &SaveOptions,
    ) -> Result<(), Error> {
        let _lease = self.lease()?;
        let mut images: Vec<SavedImage> = Vec::new();
        for reference in references {
            let not_cached = || Error::NotCached { reference: reference.clone().into() };
            let image = self.get(reference)?.ok_or_else(not_cached)?;
            let saved = images.iter_mut().find(|saved| saved.image.digest() == image.digest());
            match saved {
                Some(saved) => saved.names.push(reference.clone()),
                None => images.push(SavedImage::read(self, image, reference)?),
            }
        }
        let mut output = Output::open(target, options.format)?;
        let compression = match options.format {
            ArchiveFormat::Docker => LayerCompression::None,
            ArchiveFormat::Oci | ArchiveFormat::OciLayout => options.compression,
        };
        let blobs = self.layer_blobs(&images, compression)?;
        match options.format {
            ArchiveFormat::Docker => self.write_docker(&images, &blobs, &mut output)?,
            ArchiveFormat::Oci | ArchiveFormat::OciLayout => {
                self.write_oci(&images, &blobs, &mut output)?;
            }
        }
        output.finish()
    }

    /// Every layer once, ready to be written.
    fn layer_blobs(
        &self,
        images: &[SavedImage],
        compression: LayerCompression,
    ) -> Result<HashMap<DiffId, Blob>, Error> {
        let mut wanted: Vec<(DiffId, &SavedImage)> = Vec::new();
        for image in images {
            for diff_id in image.image.diff_ids() {
                if !self.has_layer(*diff_id) {
                    return Err(Error::LayerIncomplete { image: image.label(), layer: *diff_id });
                }
                if !wanted.iter().any(|(other, _)| other == diff_id) {
                    wanted.push((*diff_id, image));
                }
            }
        }
        let queue = Mutex::new(wanted.into_iter());
        let work = || -> Result<Vec<(DiffId, Blob)>, Error> {
            let mut made = Vec::new();
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some((diff_id, _)) = next else { return Ok(made) };
                made.push((diff_id, self.layer_blob(diff_id, compression)?));
            }
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..PARALLEL_LAYERS).map(|_| scope.spawn(work)).collect();
            let mut blobs = HashMap::new();
            for worker in workers {
                let made = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                blobs.extend(made?);
            }
            Ok(blobs)
        })
    }

    fn layer_blob(&self, diff_id: DiffId, compression: LayerCompression) -> Result<Blob, Error> {
        let fault = |source| Error::ReadStore { path: self.record_path(diff_id), source };
        let media_type = match compression {
            LayerCompression::Gzip => OCI_LAYER_GZIP,
            LayerCompression::None => OCI_LAYER,
            LayerCompression::Zstd => OCI_LAYER_ZSTD,
        };
        if compression == LayerCompression::None {
            let size = self.archive(diff_id)?.size().map_err(fault)?;
            return Ok(Blob { media_type, digest: diff_id.0, size, packed: None });
        }
        let mut archive = Hashing { input: self.archive(diff_id)?, hasher: Sha256::new() };
        let pack = |archive: &mut Hashing<Archive>| -> io::Result<(Sha256, File)> {
            let spool = tempfile::tempfile_in(self.layers_dir())?;
            let out = HashingWriter { output: io::BufWriter::new(spool), hasher: Sha256::new() };
            let out = match compression {
                LayerCompression::Zstd => {
                    let mut encoder = zstd::stream::write::Encoder::new(out, 0)?;
                    io::copy(archive, &mut encoder)?;
                    encoder.finish()?
                }
                LayerCompression::Gzip | LayerCompression::None => {
                    let level = flate2::Compression::default();
                    let mut encoder = flate2::write::GzEncoder::new(out, level);
                    io::copy(archive, &mut encoder)?;
                    encoder.finish()?
                }
            };
            Ok((out.hasher, out.output.into_inner()?))
        };
        let (hasher, mut spool) = pack(&mut archive).map_err(fault)?;
        self.check_archive(diff_id, archive.hasher)?;
        let size = spool.stream_position().map_err(fault)?;
        Ok(Blob { media_type, digest: Digest::from_hasher(hasher), size, packed: Some(spool) })
    }

    /// Writes a layer as a member of the archive.
    fn write_layer(
        &self,
        diff_id: DiffId,
        blob: &Blob,
        name: &str,
        output: &mut Output,
    ) -> Result<(), Error> {
        let Some(mut packed) = blob.packed.as_ref() else {
            let mut archive = Hashing { input: self.archive(diff_id)?, hasher: Sha256::new() };
            output.add(name, blob.size, &mut archive)?;
            return self.check_archive(diff_id, archive.hasher);
        };
        let path = self.layers_dir();
        packed.seek(SeekFrom::Start(0)).map_err(|source| Error::ReadStore { path, source })?;
        output.add(name, blob.size, &mut packed)
    }

    fn archive(&self, diff_id: DiffId) -> Result<Archive, Error> {
        let (layer, record) = (self.layer_path(diff_id), self.record_path(diff_id));
        let open = |path: &PathBuf| {
            File::open(path).map_err(|source| Error::ReadStore { path: path.clone(), source })
        };
        Archive::open(open(&layer)?, open(&record)?)
            .map_err(|source| Error::ReadStore { path: record, source })
    }

    /// What was made must be what once came: a store that lies is found out here.
    fn check_archive(&self, diff_id: DiffId, hasher: Sha256) -> Result<(), Error> {
        if Digest::from_hasher(hasher) == diff_id.0 {
            return Ok(());
        }
        let path = self.layer_path(diff_id);
        Err(Error::StoreDamaged {
            path,
            reason: "its archive has another digest than it came with",
        })
    }

    fn write_oci(
        &self,
        images: &[SavedImage],
        blobs: &HashMap<DiffId, Blob>,
        output: &mut Output,
    ) -> Result<(), Error> {
        let manifests: Vec<Vec<u8>> = images
            .iter()
            .map(|image| json(&image.manifest(blobs), output))
            .collect::<Result<_, _>>()?;
        let mut index = Index { schema_version: 2, media_type: OCI_INDEX, manifests: Vec::new() };
        for (image, manifest) in images.iter().zip(&manifests) {
            index.manifests.extend(image.index_entries(manifest));
        }
        output.add_document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        output.add_document("index.json", &json(&index, output)?)?;
        let mut written = Vec::new();
        let mut is_new = |digest: Digest| {
            let new = !written.contains(&digest);
            written.push(digest);
            new
        };
        for (image, manifest) in images.iter().zip(&manifests) {
            for document in [manifest, &image.config] {
                let digest = Digest::of(document);
                if is_new(digest) {
                    output.add_document(&blob_name(digest), document)?;
                }
            }
        }
        for diff_id in images.iter().flat_map(|image| image.image.diff_ids()) {
            let blob = &blobs[diff_id];
            if is_new(blob.digest) {
                self.write_layer(*diff_id, blob, &blob_name(blob.digest), output)?;
            }
        }
        Ok(())
    }

    fn write_docker(
        &self,
        images: &[SavedImage],
        blobs: &HashMap<DiffId, Blob>,
        output: &mut Output,
    ) -> Result<(), Error> {
        let entries: Vec<DockerEntry> = images
            .iter()
            .map(|image| DockerEntry {
                config: format!("{}.json", Digest::of(&image.config).hex()),
                repo_tags: image.tagged().map(Reference::familiar).collect(),
                layers: image.image.diff_ids().iter().map(layer_name).collect(),
            })
            .collect();
        output.add_document("manifest.json", &json(&entries, output)?)?;
        let mut written = Vec::new();
        for (image, entry) in images.iter().zip(&entries) {
            if !written.contains(&entry.config) {
                written.push(entry.config.clone());
                output.add_document(&entry.config, &image.config)?;
            }
            for (diff_id, name) in image.image.diff_ids().iter().zip(&entry.layers) {
                if !written.contains(name) {
                    written.push(name.clone());
                    self.write_layer(*diff_id, &blobs[diff_id], name, output)?;
                }
            }
        }
        Ok(())
    }
}

/// An image with its documents and the names it is saved under.
struct SavedImage {
    image: Image,
    names: Vec<Reference>,
    config: Vec<u8>,
    annotations: Option<serde_json::Value>,
}

impl SavedImage {
    fn read(store: &ImageStore, image: Image, name: &Reference) -> Result<Self, Error> {
        let directory = store.manifests_dir().join(image.digest().file_stem());
        let read = |file: &str| -> Result<Vec<u8>, Error> {
            let path = directory.join(file);
            read_optional(&path)?.ok_or(Error::StoreDamaged { path, reason: "it is gone" })
        };
        let annotations = match Document::parse(&read(MANIFEST_FILE)?)? {
            Document::Manifest(manifest) => manifest.annotations,
            Document::Index(_) => None,
        };
        let config = read(CONFIG_FILE)?;
        Ok(Self { image, names: vec![name.clone()], config, annotations })
    }

    fn label(&self) -> String {
        self.names.first().map_or_else(|| self.image.digest().to_string(), Reference::familiar)
    }

    /// Names that an archive can carry.
    fn tagged(&self) -> impl Iterator<Item = &Reference> {
        self.names.iter().filter(|name| name.tag().is_some())
    }

    fn manifest(&self, blobs: &HashMap<DiffId, Blob>) -> Manifest {
        let config = (Digest::of(&self.config), self.config.len() as u64);
        let layers = self.image.diff_ids().iter().map(|diff_id| {
            let blob = &blobs[diff_id];
            Descriptor::new(blob.media_type, blob.digest, blob.size)
        });
        Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            config: Descriptor::new(OCI_CONFIG, config.0, config.1),
            layers: layers.collect(),
            annotations: self.annotations.clone(),
        }
    }

    /// One entry a name; one without a name if there is none.
    fn index_entries(&self, manifest: &[u8]) -> Vec<Descriptor> {
        let mut plain = Descriptor::new(OCI_MANIFEST, Digest::of(manifest), manifest.len() as u64);
        plain.platform = Some(self.image.config().platform());
        let named: Vec<Descriptor> = self
            .tagged()
            .map(|name| {
                let annotations = Annotations {
                    ref_name: name.tag().map(str::to_owned),
                    image_name: Some(name.without_digest().to_string()),
                    reference_type: None,
                };
                Descriptor { annotations: Some(annotations), ..plain.clone() }
            })
            .collect();
        if named.is_empty() { vec![plain] } else { named }
    }
}

/// A layer as it will travel.
struct Blob {
    media_type: &'static str,
    digest: Digest,
    size: u64,
    /// The compressed bytes; uncompressed ones are made as they are written.
    packed: Option<File>,
}

/// `index.json` of a layout.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

/// One image in a docker-archive's `manifest.json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

/// Hashes what is read through it.
struct Hashing<R> {
    input: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

/// Hashes what is written through it.
struct HashingWriter<W> {
    output: W,
    hasher: Sha256,
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.output.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn json(value: &impl Serialize, output: &Output) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|source| output.fault(io::Error::other(source)))
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn layer_name(diff_id: &DiffId) -> String {
    format!("{}.tar", diff_id.0.hex())
}
