//! Layers: from the stream that travels to the EROFS file in the store, in one pass.
//!
//! ```text
//! blob ─ sha256 ─ gunzip|zstd ─┤channel├─ sha256 (diff id) ─ tar ─► file data at its final place
//!   first thread                         this thread                then metadata, superblock last
//! ```
//! Every byte of file data is written once. Memory follows the number of entries, never the size of the layer.

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
use self::stream::{Chunks, unpack};
use crate::erofs::write::{Plan, ROOT_NID};
use crate::erofs::{BlockSize, HEAD_BYTES, PART_ALIGN, Superblock};
use crate::error::LayerError;
use crate::tar::Reader;
use crate::tree::Tree;
use crate::{DiffId, Digest};

/// Largest layer, unpacked. Images of that size do not exist; a stream that claims to be one is a bomb.
const MAX_LAYER_BYTES: u64 = 512 << 30;

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

/// Where a layer is written: an empty file, its path for messages, a second file for the record of its archive, and
/// the unit of addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) file: &'a File,
    pub(crate) path: &'a Path,
    pub(crate) record: &'a File,
    pub(crate) block_size: BlockSize,
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
    thread::scope(|scope| {
        let (chunks, sink) = Chunks::channel();
        let unpacker = thread::Builder::new()
            .name("unpack-layer".into())
            .spawn_scoped(scope, move || unpack(input, promise.blob, &sink, on_read))
            .map_err(|source| LayerError::Read { source })?;
        let ingested = ingest(chunks, promise.diff_id, target);
        let unpacked = match unpacker.join() {
            Ok(unpacked) => unpacked,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // Where both ends fail, the stream is the cause: to the other end it only looked cut off.
        match (unpacked, ingested) {
            (Err(fault), _) | (Ok(_), Err(fault)) => Err(fault),
            (Ok((blob, blob_bytes)), Ok(diff_id)) => Ok(Facts { blob, blob_bytes, diff_id }),
        }
    })
}

fn ingest(
    chunks: Chunks,
    expected: Option<DiffId>,
    target: Target<'_>,
) -> Result<DiffId, LayerError> {
    let record = RecordWriter::new(target)?;
    let mut reader = Reader::new(Recorded::new(chunks, record));
    let mut data = DataWriter::new(target, HEAD_BYTES);
    let mut builder = Builder::new(target.block_size);
    while let Some(entry) = reader.next_entry()? {
        builder.add(entry, &mut reader, &mut data)?;
    }
    let (chunks, record) = reader.into_inner().finish()?;
    let diff_id = chunks.finish()?;
    if let Some(expected) = expected.filter(|expected| *expected != diff_id) {
        return Err(LayerError::DiffId { expected, actual: diff_id });
    }
    finish(&builder.into_tree(), diff_id, data, target)?;
    record.finish()?;
    Ok(diff_id)
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
        root_nid: ROOT_NID,
        uuid: diff_id.0.uuid(),
    };
    data.finish(&superblock.encode())
}
