//! The two halves of a layer's stream: unpacking on one thread, and the unpacked chunks on the other.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::error::LayerError;
use crate::{DiffId, Digest, Limits};

/// Bytes that cross the channel at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks in flight: enough for both threads to run on when the other pauses; bounds memory to 1.5 MiB.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Bytes read from the source at a time.
const READ_BYTES: usize = 128 << 10;

/// A layer as it travels, its first bytes read.
pub(super) struct Blob<'a, R> {
    bytes: Chain<Cursor<Vec<u8>>, BufReader<Source<'a, R>>>,
    compression: Compression,
    promised: Option<(Digest, u64)>,
    limits: Limits,
    /// Bytes that have travelled so far.
    travelled: Arc<AtomicU64>,
}

impl<'a, R: Read> Blob<'a, R> {
    pub(super) fn open(
        input: R,
        promised: Option<(Digest, u64)>,
        limits: Limits,
        on_read: &'a (dyn Fn(u64) + Sync),
    ) -> Result<Self, LayerError> {
        let travelled = Arc::new(AtomicU64::new(0));
        let limit = promised.map_or(u64::MAX, |(_, size)| size);
        let count = Arc::clone(&travelled);
        let source = Source { input, hasher: Sha256::new(), count, limit, on_read };
        let mut source = BufReader::with_capacity(READ_BYTES, source);
        let mut magic = Vec::new();
        (&mut source).take(6).read_to_end(&mut magic).map_err(read_fault)?;
        let compression = Compression::of(&magic)?;
        let bytes = Cursor::new(magic).chain(source);
        Ok(Self { bytes, compression, promised, limits, travelled })
    }

    /// Whether what unpacks is something else than what travels.
    pub(super) fn is_packed(&self) -> bool {
        self.compression != Compression::None
    }

    /// Reads, checks and unpacks all of it; returns the digest and the size of what travelled.
    ///
    /// An end of the channel that went away is no error here: the other thread has one to tell.
    pub(super) fn unpack(mut self, sink: &Sink) -> Result<(Digest, u64), LayerError> {
        let expansion = Expansion {
            limits: self.limits,
            travelled: self.is_packed().then(|| Arc::clone(&self.travelled)),
            unpacked: 0,
        };
        match self.compression {
            Compression::None => forward(&mut self.bytes, sink, expansion, read_fault)?,
            Compression::Gzip => {
                let mut decoder = flate2::bufread::MultiGzDecoder::new(&mut self.bytes);
                forward(&mut decoder, sink, expansion, decode_fault)?;
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&mut self.bytes)
                    .map_err(read_fault)?;
                forward(&mut decoder, sink, expansion, decode_fault)?;
            }
        }
        // Whatever follows the compressed data belongs to the blob and its digest.
        io::copy(&mut self.bytes, &mut io::sink()).map_err(read_fault)?;
        let (_, source) = self.bytes.into_inner();
        let count = self.travelled.load(Ordering::Relaxed);
        let actual = Digest::from_hasher(source.into_inner().hasher);
        match self.promised {
            Some((_, size)) if count != size => {
                Err(LayerError::BlobSize { expected: size, actual: count })
            }
            Some((expected, _)) if actual != expected => {
                Err(LayerError::BlobDigest { expected, actual })
            }
            _ => Ok((actual, count)),
        }
    }
}

/// How a layer is packed, told by its first bytes: media types lie, magic numbers do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    Gzip,
    None,
    Zstd,
}

impl Compression {
    fn of(magic: &[u8]) -> Result<Self, LayerError> {
        match magic {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            // A zstd stream may begin with a skippable frame (RFC 8878, 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', ..] => Err(LayerError::UnknownCompression { format: "bzip2" }),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                Err(LayerError::UnknownCompression { format: "xz" })
            }
            _ => Ok(Self::None),
        }
    }
}

/// Counts and hashes what is read, and stops a source that delivers more than was promised.
struct Source<'a, R> {
    input: R,
    hasher: Sha256,
    count: Arc<AtomicU64>,
    limit: u64,
    on_read: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let before = self.count.load(Ordering::Relaxed);
        if before > self.limit {
            // The size is already wrong; unpacking on would only spend time on it.
            return Ok(0);
        }
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        let after = before + count as u64;
        self.count.store(after, Ordering::Relaxed);
        (self.on_read)(after);
        Ok(count)
    }
}

/// What the unpacked stream has grown to, and how far it may grow.
struct Expansion {
    limits: Limits,
    /// Bytes that have travelled so far; `None` where nothing is packed.
    travelled: Option<Arc<AtomicU64>>,
    unpacked: u64,
}

impl Expansion {
    fn add(&mut self, count: usize) -> Result<(), LayerError> {
        self.unpacked += count as u64;
        let Limits { layer_bytes, layer_ratio, .. } = self.limits;
        if self.unpacked > layer_bytes {
            return Err(LayerError::TooMuch { what: "bytes", limit: layer_bytes });
        }
        let travelled = self.travelled.as_ref().map(|count| count.load(Ordering::Relaxed));
        match travelled {
            Some(travelled) if !self.limits.allow_expansion(travelled, self.unpacked) => {
                Err(LayerError::Expansion { ratio: layer_ratio })
            }
            _ => Ok(()),
        }
    }
}

/// Sends everything `input` delivers in whole chunks, until the receiver is gone.
fn forward(
    input: &mut impl Read,
    sink: &Sink,
    mut expansion: Expansion,
    fault: fn(io::Error) -> LayerError,
) -> Result<(), LayerError> {
    loop {
        let mut chunk = sink.empty();
        while chunk.filled < CHUNK_BYTES {
            match input.read(&mut chunk.bytes[chunk.filled..]) {
                Ok(0) => break,
                Ok(count) => chunk.filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(fault(error)),
            }
        }
        let filled = chunk.filled;
        expansion.add(filled)?;
        if (filled > 0 && sink.filled.send(chunk).is_err()) || filled < CHUNK_BYTES {
            return Ok(());
        }
    }
}

fn read_fault(source: io::Error) -> LayerError {
    LayerError::Read { source }
}

fn decode_fault(source: io::Error) -> LayerError {
    match source.kind() {
        // What the source reports passes through the decoder unchanged; the decoders' own complaints are these.
        io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidData
        | io::ErrorKind::UnexpectedEof
        | io::ErrorKind::Other => LayerError::Decompress { source },
        _ => LayerError::Read { source },
    }
}

/// A piece of the unpacked stream; its memory goes back to be filled again.
#[derive(Debug, Default)]
struct Chunk {
    bytes: Vec<u8>,
    filled: usize,
}

/// Where unpacked chunks go.
#[derive(Debug)]
pub(super) struct Sink {
    filled: SyncSender<Chunk>,
    empties: Receiver<Chunk>,
}

impl Sink {
    fn empty(&self) -> Chunk {
        let used = self.empties.try_recv().ok().filter(|chunk| chunk.bytes.len() == CHUNK_BYTES);
        let bytes = used.map_or_else(|| vec![0; CHUNK_BYTES], |chunk| chunk.bytes);
        Chunk { bytes, filled: 0 }
    }
}

/// The unpacked stream, hashed as it arrives if that is wanted.
#[derive(Debug)]
pub(super) struct Chunks {
    receiver: Receiver<Chunk>,
    empties: Sender<Chunk>,
    chunk: Chunk,
    consumed: usize,
    hasher: Option<Sha256>,
}

impl Chunks {
    /// Both ends. A stream that was not packed has been hashed as it travelled, and need not be again.
    pub(super) fn channel(is_packed: bool) -> (Sink, Self) {
        let (filled, receiver) = sync_channel(CHUNKS_IN_FLIGHT);
        let (empties, used) = channel();
        let hasher = is_packed.then(Sha256::new);
        let chunks = Self { receiver, empties, chunk: Chunk::default(), consumed: 0, hasher };
        (Sink { filled, empties: used }, chunks)
    }

    /// Reads the stream to its end and returns the digest of all of it, if it was hashed.
    pub(super) fn finish(mut self) -> Result<Option<DiffId>, LayerError> {
        while let len @ 1.. = self.fill_buf().map_err(read_fault)?.len() {
            self.consume(len);
        }
        Ok(self.hasher.map(|hasher| DiffId(Digest::from_hasher(hasher))))
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed == self.chunk.filled {
            // A closed channel is the end: the sender's own result says whether it was the right one.
            let next = self.receiver.recv().unwrap_or_default();
            // Nobody takes it back at the end of the stream.
            let _ = self.empties.send(std::mem::replace(&mut self.chunk, next));
            self.consumed = 0;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&self.chunk.bytes[..self.chunk.filled]);
            }
        }
        Ok(&self.chunk.bytes[self.consumed..self.chunk.filled])
    }

    fn consume(&mut self, count: usize) {
        self.consumed += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compression_is_told_by_content() {
        for (magic, expected) in [
            (&b"\x1f\x8b\x08\0\0\0"[..], Some(Compression::Gzip)),
            (b"\x28\xb5\x2f\xfd\0\0", Some(Compression::Zstd)),
            (b"\x5e\x2a\x4d\x18\0\0", Some(Compression::Zstd)),
            (b"etc/pa", Some(Compression::None)),
            (b"", Some(Compression::None)),
            (b"BZh91A", None),
            (b"\xfd7zXZ\0", None),
        ] {
            assert_eq!(Compression::of(magic).ok(), expected, "{magic:?}");
        }
    }
}
