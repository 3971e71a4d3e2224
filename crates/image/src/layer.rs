//! Layers: from the stream that travels to the EROFS file in the store, in one pass.
//!
//! ```text
//! blob ─ sha256 ─ gunzip|zstd ─┤channel├─ sha256 (diff id) ─ tar ─► file data at its final place
//!   first thread                         this thread                then metadata, superblock last
//! ```
//! Every byte of file data is written once, and what is not packed is hashed once: its two digests are one. Memory
//! follows the number of entries, never the size of the layer.

mod builder;
mod data;
pub(crate) mod record;
mod stream;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::thread;

use self::builder::Builder;
use self::data::DataWriter;
use self::record::{RecordWriter, Recorded};
use self::stream::{Blob, Chunks};
use crate::erofs::write::Plan;
use crate::erofs::{BlockSize, HEAD_BYTES, PART_ALIGN, Superblock};
use crate::error::LayerError;
use crate::tar::Reader;
use crate::tree::Tree;
use crate::{DiffId, Digest, Limits};

/// What a manifest and a configuration promise about a layer; unknown when a loose archive is read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Promise {
    pub(crate) blob: Option<(Digest, u64)>,
    pub(crate) diff_id: Option<DiffId>,
}

impl Promise {
    /// Whether a layer that was made earlier is the one that was promised.
    pub(crate) fn check(&self, facts: &Facts) -> Result<(), LayerError> {
        if let Some((expected, size)) = self.blob {
            if facts.blob_bytes != size {
                return Err(LayerError::BlobSize { expected: size, actual: facts.blob_bytes });
            }
            if facts.blob != expected {
                return Err(LayerError::BlobDigest { expected, actual: facts.blob });
            }
        }
        match self.diff_id {
            Some(expected) if expected != facts.diff_id => {
                Err(LayerError::DiffId { expected, actual: facts.diff_id })
            }
            _ => Ok(()),
        }
    }
}

/// What a layer turned out to be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Facts {
    pub(crate) blob: Digest,
    pub(crate) blob_bytes: u64,
    pub(crate) diff_id: DiffId,
}

/// Where a layer is written: an empty file, its path for messages, a second file for the record of its archive, the
/// unit of addresses, and how much is allowed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) record: &'a File,
    pub(crate) block_size: BlockSize,
    pub(crate) limits: Limits,
}

/// Turns the layer that `input` delivers into an EROFS image; `on_read` hears how many bytes have travelled.
///
/// # Errors
/// Anything in [`LayerError`]; the target then holds garbage.
pub(crate) fn build(
    input: impl Read + Send,
    promise: Promise,
    target: Target<'_>,
    on_read: &(dyn Fn(u64) + Sync),
) -> Result<Facts, LayerError> {
    let blob = Blob::open(input, promise.blob, target.limits, on_read)?;
    let (sink, chunks) = Chunks::channel(blob.is_packed());
    let (unpacked, ingested) = thread::scope(|scope| {
        let unpacker = thread::Builder::new()
            .name("unpack-layer".into())
            .spawn_scoped(scope, move || blob.unpack(&sink))
            .map_err(|source| LayerError::Read { source })?;
        let ingested = ingest(chunks, target);
        match unpacker.join() {
            Ok(unpacked) => Ok((unpacked, ingested)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })?;
    // Where both ends fail, the stream is the cause: to the other end it only looked cut off.
    let (blob, blob_bytes) = unpacked?;
    let Ingested { tree, data, record, diff_id } = ingested?;
    let diff_id = diff_id.unwrap_or(DiffId(blob));
    if let Some(expected) = promise.diff_id.filter(|expected| *expected != diff_id) {
        return Err(LayerError::DiffId { expected, actual: diff_id });
    }
    finish(&tree, diff_id, data, target)?;
    record.finish()?;
    Ok(Facts { blob, blob_bytes, diff_id })
}

/// A layer whose file data is in place.
struct Ingested<'a> {
    tree: Tree,
    data: DataWriter<'a>,
    record: RecordWriter<'a>,
    /// Unknown where the stream was not packed.
    diff_id: Option<DiffId>,
}

fn ingest(chunks: Chunks, target: Target<'_>) -> Result<Ingested<'_>, LayerError> {
    let record = RecordWriter::new(target)?;
    let mut reader = Reader::new(Recorded::new(chunks, record));
    let mut data = DataWriter::new(target, HEAD_BYTES);
    let mut builder = Builder::new(target.block_size, target.limits.layer_entries);
    while let Some(entry) = reader.next_entry()? {
        builder.add(entry, &mut reader, &mut data)?;
    }
    let (chunks, record) = reader.into_inner().finish()?;
    let diff_id = chunks.finish()?;
    Ok(Ingested { tree: builder.into_tree(), data, record, diff_id })
}

/// Appends the metadata and writes the superblock.
fn finish(
    tree: &Tree,
    diff_id: DiffId,
    mut data: DataWriter<'_>,
    target: Target<'_>,
) -> Result<(), LayerError> {
    let write_fault = |source| LayerError::Write { path: target.path.to_owned(), source };
    let plan = Plan::new(tree, target.block_size);
    data.align(PART_ALIGN)?;
    let block = |bytes: u64| {
        u32::try_from(bytes / target.block_size.bytes())
            .map_err(|_| LayerError::TooMuch { what: "blocks", limit: u32::MAX.into() })
    };
    let meta_block = block(data.position())?;
    let blocks = block(data.position() + plan.bytes())?;
    plan.write(&mut data, meta_block, &|_| 0).map_err(write_fault)?;
    let superblock = Superblock {
        block_size: target.block_size,
        blocks,
        inodes: plan.inodes(),
        meta_block,
        root_nid: plan.root_nid(),
        uuid: diff_id.0.uuid(),
    };
    data.finish(&superblock.encode())
}
