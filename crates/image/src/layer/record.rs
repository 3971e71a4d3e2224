//! Records: what an archive holds besides the data of its files, so that it can be written again to the byte.
//!
//! ```text
//! "MSBREC" 0 1 | zstd: piece … end
//! piece: 0 | len | bytes                   headers, padding, data of entries that are no files here
//!        1 | offset | len                  data that lies at `offset` in the layer's file
//!        3 | len                           zeros: half of a header, and all padding
//! end:   2 | bytes of the whole archive    numbers are LEB128
//! ```
//! The writer sits between the unpacked stream and the tar reader and keeps every byte that passes, except those it
//! was told are a file's data. `docs/formats/layer-record.md` is the page of the format.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use zstd::stream::{read::Decoder, write::Encoder};

use super::Target;
use crate::error::LayerError;

/// First bytes of a record; the last one is the version.
const MAGIC: [u8; 8] = *b"MSBREC\0\x01";

const RAW: u8 = 0;
const DATA: u8 = 1;
const END: u8 = 2;
const ZEROS: u8 = 3;

/// Zeros are looked for in units of this; fewer are not worth a piece.
const UNIT: [u8; 16] = [0; 16];

/// Headers repeat one another: the fastest level leaves little, and time is dearer here than room.
const LEVEL: i32 = 1;

/// Bytes of pieces that are compressed at a time.
const BUFFER_BYTES: usize = 64 << 10;

/// Most bytes recorded: twice what the headers of the most entries take.
const MAX_RECORDED_BYTES: u64 = 16 << 30;

/// Writes one record.
pub(super) struct RecordWriter<'a> {
    target: Target<'a>,
    out: Encoder<'static, &'a File>,
    /// Pieces on their way to `out`.
    buffer: Vec<u8>,
    recorded: u64,
    total: u64,
}

impl<'a> RecordWriter<'a> {
    pub(super) fn new(target: Target<'a>) -> Result<Self, LayerError> {
        let fault = |source| write_fault(target, source);
        let mut file = target.record;
        file.write_all(&MAGIC).map_err(fault)?;
        let out = Encoder::new(file, LEVEL).map_err(fault)?;
        Ok(Self {
            target,
            out,
            buffer: Vec::with_capacity(2 * BUFFER_BYTES),
            recorded: 0,
            total: 0,
        })
    }

    fn raw(&mut self, bytes: &[u8]) -> Result<(), LayerError> {
        self.total += bytes.len() as u64;
        self.recorded += bytes.len() as u64;
        if self.recorded > MAX_RECORDED_BYTES {
            let limit = MAX_RECORDED_BYTES;
            return Err(LayerError::TooMuch { what: "bytes that are no file's", limit });
        }
        let is_zero = |at: usize| bytes.get(at..at + UNIT.len()) == Some(&UNIT);
        let mut at = 0;
        while at < bytes.len() {
            let (start, zero) = (at, is_zero(at));
            while at < bytes.len() && is_zero(at) == zero {
                at = (at + UNIT.len()).min(bytes.len());
            }
            let run = &bytes[start..at];
            if zero {
                self.piece(ZEROS, &[run.len() as u64]);
            } else {
                self.piece(RAW, &[run.len() as u64]);
                self.buffer.extend_from_slice(run);
            }
        }
        self.flush_above(BUFFER_BYTES)
    }

    fn data(&mut self, offset: u64, len: u64) -> Result<(), LayerError> {
        self.total += len;
        self.piece(DATA, &[offset, len]);
        self.flush_above(BUFFER_BYTES)
    }

    /// Writes the end; without it a record is no record.
    pub(super) fn finish(mut self) -> Result<(), LayerError> {
        self.piece(END, &[self.total]);
        self.flush_above(0)?;
        self.out.finish().map(drop).map_err(|source| write_fault(self.target, source))
    }

    fn piece(&mut self, kind: u8, numbers: &[u64]) {
        self.buffer.push(kind);
        for number in numbers {
            push_number(*number, &mut self.buffer);
        }
    }

    /// Compresses what has gathered, once there is more of it than `limit`.
    fn flush_above(&mut self, limit: usize) -> Result<(), LayerError> {
        if self.buffer.len() > limit {
            let written = self.out.write_all(&self.buffer);
            written.map_err(|source| write_fault(self.target, source))?;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// The unpacked stream on its way to the tar reader, recorded as it is consumed.
pub(super) struct Recorded<'a, R> {
    input: R,
    record: RecordWriter<'a>,
    /// Bytes ahead that are data of files.
    data_ahead: u64,
    /// `consume` cannot fail; what went wrong there is told at the end.
    fault: Option<LayerError>,
}

impl<'a, R: BufRead> Recorded<'a, R> {
    pub(super) fn new(input: R, record: RecordWriter<'a>) -> Self {
        Self { input, record, data_ahead: 0, fault: None }
    }

    /// The next `len` bytes that are not spoken for will lie at `offset` of the layer's file.
    pub(super) fn data_follows(&mut self, offset: u64, len: u64) {
        if len > 0 {
            let noted = self.record.data(offset, len);
            self.note(noted);
            self.data_ahead += len;
        }
    }

    /// Takes what follows the end of the archive, and gives the stream and the record back.
    pub(super) fn finish(mut self) -> Result<(R, RecordWriter<'a>), LayerError> {
        while let Some(len) =
            Some(self.fill_buf().map_err(|source| LayerError::Read { source })?.len())
                .filter(|len| *len > 0)
        {
            self.consume(len);
        }
        match self.fault {
            Some(fault) => Err(fault),
            None => Ok((self.input, self.record)),
        }
    }

    fn note(&mut self, result: Result<(), LayerError>) {
        if let Err(fault) = result {
            self.fault.get_or_insert(fault);
        }
    }
}

impl<R: BufRead> BufRead for Recorded<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        let data = usize::try_from(self.data_ahead).map_or(count, |ahead| ahead.min(count));
        self.data_ahead -= data as u64;
        if data < count && self.fault.is_none() {
            let recorded = match self.input.fill_buf() {
                Ok(bytes) => self.record.raw(&bytes[data..count]),
                Err(source) => Err(LayerError::Read { source }),
            };
            self.note(recorded);
        }
        self.input.consume(count);
    }
}

impl<R: BufRead> Read for Recorded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

/// The archive that a record and a layer's file stand for.
pub(crate) struct Archive {
    layer: File,
    pieces: BufReader<Decoder<'static, BufReader<File>>>,
    current: Piece,
    produced: u64,
}

enum Piece {
    Data { offset: u64, left: u64 },
    End,
    Raw { left: u64 },
    Zeros { left: u64 },
}

impl Archive {
    /// Reads from the two files of a layer.
    ///
    /// # Errors
    /// `InvalidData` when the record is none.
    pub(crate) fn open(layer: File, mut record: File) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        record.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(damaged());
        }
        let pieces = BufReader::new(Decoder::new(record)?);
        Ok(Self { layer, pieces, current: Piece::Raw { left: 0 }, produced: 0 })
    }

    /// Bytes of the whole archive. Reads through the record, not through the data.
    pub(crate) fn size(mut self) -> io::Result<u64> {
        loop {
            match self.next_piece()? {
                Piece::Raw { left } => {
                    let skipped = io::copy(&mut (&mut self.pieces).take(left), &mut io::sink())?;
                    if skipped < left {
                        return Err(damaged());
                    }
                    self.produced += left;
                }
                Piece::Data { left, .. } | Piece::Zeros { left } => self.produced += left,
                Piece::End => return Ok(self.produced),
            }
        }
    }

    fn next_piece(&mut self) -> io::Result<Piece> {
        let mut kind = [0];
        self.pieces.read_exact(&mut kind)?;
        match kind[0] {
            RAW => Ok(Piece::Raw { left: self.number()? }),
            DATA => Ok(Piece::Data { offset: self.number()?, left: self.number()? }),
            ZEROS => Ok(Piece::Zeros { left: self.number()? }),
            END if self.number()? == self.produced => Ok(Piece::End),
            _ => Err(damaged()),
        }
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.pieces.read_exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let room = buffer.len();
        let limit = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(room);
        loop {
            let count = match &mut self.current {
                Piece::End => return Ok(0),
                Piece::Raw { left: 0 } | Piece::Data { left: 0, .. } | Piece::Zeros { left: 0 } => {
                    self.current = self.next_piece()?;
                    continue;
                }
                Piece::Raw { left } => {
                    let count = self.pieces.read(&mut buffer[..limit(*left)])?;
                    *left -= count as u64;
                    count
                }
                Piece::Zeros { left } => {
                    let count = limit(*left);
                    buffer[..count].fill(0);
                    *left -= count as u64;
                    count
                }
                Piece::Data { offset, left } => {
                    let count = self.layer.read_at(&mut buffer[..limit(*left)], *offset)?;
                    (*offset, *left) = (*offset + count as u64, *left - count as u64);
                    count
                }
            };
            if count == 0 {
                return Err(damaged());
            }
            self.produced += count as u64;
            return Ok(count);
        }
    }
}

fn push_number(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let low = u8::try_from(value & 0x7f).expect("seven bits fit");
        value >>= 7;
        if value == 0 {
            return out.push(low);
        }
        out.push(low | 0x80);
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the record of the layer's archive is damaged")
}

fn write_fault(target: Target<'_>, source: io::Error) -> LayerError {
    LayerError::Write { path: target.path.to_owned(), source }
}
