//! The two halves of a layer's stream: unpacking on one thread, and the unpacked chunks on the other.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use sha2::{Digest as _, Sha256};

use crate::error::LayerError;
use crate::{DiffId, Digest};

/// Bytes that cross the channel at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks in flight: enough for both threads to run on when the other pauses; bounds memory to 1 MiB.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Bytes read from the source at a time.
const READ_BYTES: usize = 128 << 10;

/// Reads, checks and unpacks `input`; returns the digest and the size of what travelled.
///
/// An end of the channel that went away is no error here: the other thread has one to tell.
pub(super) fn unpack(
    input: impl Read,
    promised: Option<(Digest, u64)>,
    sink: &SyncSender<Vec<u8>>,
    on_read: &(dyn Fn(u64) + Sync),
) -> Result<(Digest, u64), LayerError> {
    let read_fault = |source| LayerError::Read { source };
    let limit = promised.map_or(u64::MAX, |(_, size)| size);
    let source = Source { input, hasher: Sha256::new(), count: 0, limit, on_read };
    let mut source = BufReader::with_capacity(READ_BYTES, source);
    let mut magic = Vec::new();
    (&mut source).take(6).read_to_end(&mut magic).map_err(read_fault)?;
    let format = Compression::of(&magic)?;
    let mut whole = Cursor::new(magic).chain(source);
    match format {
        Compression::None => forward(&mut whole, sink).map_err(read_fault)?,
        Compression::Gzip => {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(&mut whole);
            forward(&mut decoder, sink).map_err(decode_fault)?;
        }
        Compression::Zstd => {
            let mut decoder =
                zstd::stream::read::Decoder::with_buffer(&mut whole).map_err(read_fault)?;
            forward(&mut decoder, sink).map_err(decode_fault)?;
        }
    }
    // Whatever follows the compressed data belongs to the blob and its digest.
    io::copy(&mut whole, &mut io::sink()).map_err(read_fault)?;
    let (_, source) = whole.into_inner();
    let source = source.into_inner();
    let (actual, count) = (Digest::from_hasher(source.hasher), source.count);
    match promised {
        Some((_, size)) if count != size => {
            Err(LayerError::BlobSize { expected: size, actual: count })
        }
        Some((expected, _)) if actual != expected => {
            Err(LayerError::BlobDigest { expected, actual })
        }
        _ => Ok((actual, count)),
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
    count: u64,
    limit: u64,
    on_read: &'a (dyn Fn(u64) + Sync),
}

impl<R: Read> Read for Source<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.count > self.limit {
            // The size is already wrong; unpacking on would only spend time on it.
            return Ok(0);
        }
        let count = self.input.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count += count as u64;
        (self.on_read)(self.count);
        Ok(count)
    }
}

/// Sends everything `input` delivers in whole chunks, until the receiver is gone.
fn forward(input: &mut impl Read, sink: &SyncSender<Vec<u8>>) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        while filled < chunk.len() {
            match input.read(&mut chunk[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let last = filled < chunk.len();
        chunk.truncate(filled);
        if (!chunk.is_empty() && sink.send(chunk).is_err()) || last {
            return Ok(());
        }
    }
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

/// The unpacked stream, hashed as it arrives.
#[derive(Debug)]
pub(super) struct Chunks {
    receiver: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    consumed: usize,
    hasher: Sha256,
}

impl Chunks {
    pub(super) fn channel() -> (Self, SyncSender<Vec<u8>>) {
        let (sender, receiver) = sync_channel(CHUNKS_IN_FLIGHT);
        (Self { receiver, chunk: Vec::new(), consumed: 0, hasher: Sha256::new() }, sender)
    }

    /// Reads the stream to its end and returns the digest of all of it.
    pub(super) fn finish(mut self) -> Result<DiffId, LayerError> {
        while let Some(len) =
            Some(self.fill_buf().map_err(|source| LayerError::Read { source })?.len())
                .filter(|len| *len > 0)
        {
            self.consume(len);
        }
        Ok(DiffId(Digest::from_hasher(self.hasher)))
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.consumed == self.chunk.len() {
            // A closed channel is the end: the sender's own result says whether it was the right one.
            self.chunk = self.receiver.recv().unwrap_or_default();
            self.consumed = 0;
            self.hasher.update(&self.chunk);
        }
        Ok(&self.chunk[self.consumed..])
    }

    fn consume(&mut self, count: usize) {
        self.consumed += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
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
