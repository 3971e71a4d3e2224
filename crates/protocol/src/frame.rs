//! Frames: the length-prefixed envelope both ends of the agent link speak.
//!
//! `len u32 LE | stream u32 LE | kind u8 | flags u8 | body`, where `len` counts everything after
//! itself. The envelope is fixed for all generations, so that an unknown kind can be skipped.
//! Sockets and ports are read by `agent::port` and `runtime::link`.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, Kind};

/// Number of a conversation on the link; 0 is the link itself.
pub type StreamId = u32;

/// Bytes of the length field and of the header it counts.
pub const HEADER_LEN: usize = LEN_FIELD + COUNTED_HEADER;

/// Largest value of the length field. Checked before a byte of the body is stored, so a hostile
/// peer cannot make the other end allocate more.
pub const MAX_FRAME_LEN: u32 = 1 << 20;

/// Largest body of one frame.
pub const MAX_BODY_LEN: usize = MAX_FRAME_LEN as usize - COUNTED_HEADER;

/// Largest piece of bulk data a well-behaved sender puts in one frame.
///
/// Control frames wait for at most one such piece on the wire; 128 KiB costs a few hundred
/// microseconds there and is large enough that headers do not matter.
pub const MAX_BULK_LEN: usize = 128 << 10;

/// Credit a stream starts with when its receiver has no reason for another figure.
///
/// Two bulk frames in flight keep the port busy while the receiver answers the one before.
pub const DEFAULT_WINDOW_BYTES: u32 = 512 << 10;

/// Flag: the last bulk frame of its kind on this stream; the sender has reached end of file.
pub const FLAG_END: u8 = 1;

const LEN_FIELD: usize = 4;
const COUNTED_HEADER: usize = 6;
const MIN_FRAME_LEN: u32 = 6;

/// One frame, its body not yet interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Conversation this frame belongs to.
    pub stream: StreamId,
    /// Kind byte; [`crate::Kind::from_byte`] names it.
    pub kind: u8,
    /// Flag bits; only [`FLAG_END`] is defined, others are ignored.
    pub flags: u8,
    /// A postcard struct or bulk bytes, as the kind says.
    pub body: Bytes,
}

impl Frame {
    /// The header as it goes on the wire; the body follows it unchanged.
    ///
    /// # Panics
    /// When the body is longer than [`MAX_BODY_LEN`]: senders split bulk data before this point.
    pub fn header(&self) -> [u8; HEADER_LEN] {
        encode_header(self.stream, self.kind, self.flags, self.body.len())
    }

    /// The header of a bulk frame whose `body_len` bytes the sender already has behind it.
    ///
    /// # Panics
    /// As [`Frame::header`].
    pub fn bulk_header(stream: StreamId, kind: Kind, body_len: usize) -> [u8; HEADER_LEN] {
        encode_header(stream, kind.byte(), 0, body_len)
    }

    /// Bytes this frame takes on the wire.
    pub fn wire_len(&self) -> usize {
        HEADER_LEN + self.body.len()
    }

    /// Whether the sender has reached end of file with this frame.
    pub fn is_end(&self) -> bool {
        self.flags & FLAG_END != 0
    }
}

/// Cuts a byte stream into frames without copying bodies.
///
/// Fill [`FrameDecoder::buffer`] with whatever arrived, then call [`FrameDecoder::next_frame`]
/// until it gives `None`.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    buffer: BytesMut,
}

impl FrameDecoder {
    /// Where received bytes are appended.
    ///
    /// Room for the rest of a frame that has begun is reserved, so a bulk body is stored once. While
    /// there is enough, nothing is: more would move what has come of the frame. Memory of frames that
    /// were dropped is used again.
    pub fn buffer(&mut self) -> &mut BytesMut {
        let missing = match self.announced() {
            Some(whole) => whole.saturating_sub(self.buffer.len()),
            None => 0,
        };
        if self.buffer.capacity() - self.buffer.len() < missing.max(LEAST_ROOM) {
            self.buffer.reserve(missing.max(READ_ROOM));
        }
        &mut self.buffer
    }

    /// The next whole frame, or `None` until more bytes have come.
    ///
    /// # Errors
    /// [`Error::FrameLength`] when the length field is out of range; the stream is useless then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Error> {
        let Some(field) = self.buffer.first_chunk::<LEN_FIELD>() else { return Ok(None) };
        let len = u32::from_le_bytes(*field);
        check_len(len)?;
        let whole = LEN_FIELD + len as usize;
        if self.buffer.len() < whole {
            return Ok(None);
        }
        let mut bytes = self.buffer.split_to(whole).freeze();
        bytes.advance(LEN_FIELD);
        let (stream, kind, flags) = (bytes.get_u32_le(), bytes.get_u8(), bytes.get_u8());
        Ok(Some(Frame { stream, kind, flags, body: bytes }))
    }

    /// Whether every byte received so far belonged to a whole frame.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Length of the frame in the buffer, when its length field is there and legal.
    fn announced(&self) -> Option<usize> {
        let len = u32::from_le_bytes(*self.buffer.first_chunk::<LEN_FIELD>()?);
        check_len(len).ok()?;
        Some(LEN_FIELD + len as usize)
    }
}

/// Room that is made for a reader: one read takes several small frames.
const READ_ROOM: usize = 64 << 10;

/// Least room that a reader is offered: what the console port gives at once.
const LEAST_ROOM: usize = 4 << 10;

fn encode_header(stream: StreamId, kind: u8, flags: u8, body_len: usize) -> [u8; HEADER_LEN] {
    assert!(body_len <= MAX_BODY_LEN, "a frame body is split before it is framed");
    let len = u32::try_from(body_len + COUNTED_HEADER).expect("bounded just above");
    let mut header = [0; HEADER_LEN];
    let mut out = &mut header[..];
    out.put_u32_le(len);
    out.put_u32_le(stream);
    out.put_u8(kind);
    out.put_u8(flags);
    header
}

fn check_len(len: u32) -> Result<(), Error> {
    if (MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) {
        return Ok(());
    }
    Err(Error::FrameLength { len, min: MIN_FRAME_LEN, max: MAX_FRAME_LEN })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn length_is_accepted_only_when_a_whole_frame_can_have_it() {
        for (len, accepted) in
            [(0, false), (5, false), (6, true), (MAX_FRAME_LEN, true), (MAX_FRAME_LEN + 1, false)]
        {
            assert_eq!(check_len(len).is_ok(), accepted, "len = {len}");
        }
    }

    #[test]
    fn header_bytes_are_fixed_forever() {
        let frame =
            Frame { stream: 0x0102_0304, kind: 33, flags: 1, body: Bytes::from_static(b"hi") };
        assert_eq!(frame.header(), [8, 0, 0, 0, 4, 3, 2, 1, 33, 1]);
        let bulk = Frame::bulk(7, Kind::Stderr, Bytes::from_static(b"hi"));
        assert_eq!(Frame::bulk_header(7, Kind::Stderr, 2), bulk.header());
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut_of_the_byte_stream(
            frames in prop::collection::vec(
                (any::<u32>(), any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)),
                0..8,
            ),
            cut in 1usize..64,
        ) {
            let frames: Vec<Frame> = frames
                .into_iter()
                .map(|(stream, kind, flags, body)| Frame { stream, kind, flags, body: body.into() })
                .collect();
            let mut wire = Vec::new();
            for frame in &frames {
                wire.extend_from_slice(&frame.header());
                wire.extend_from_slice(&frame.body);
            }
            let mut decoder = FrameDecoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(cut) {
                decoder.buffer().extend_from_slice(piece);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn decoder_never_panics_on_garbage(wire in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut decoder = FrameDecoder::default();
            decoder.buffer().extend_from_slice(&wire);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }
    }
}
