//! Hello: the first frame each end sends, in a layout that never changes.
//!
//! `magic [8] | oldest u16 LE | newest u16 LE | capabilities u64 LE`, kind 1, stream 0. Bytes after
//! these are ignored, so a later generation may append.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{Error, Frame, Kind};

/// Newest generation this code speaks.
pub const GENERATION: u16 = 1;

/// Oldest generation this code still speaks.
pub const GENERATION_OLDEST: u16 = 1;

const MAGIC: [u8; 8] = *b"msbagent";
const LEN: usize = 20;

/// What an end says of itself before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Oldest generation it speaks.
    pub oldest: u16,
    /// Newest generation it speaks.
    pub newest: u16,
    /// Bits for what it can do beyond its generation; none is defined yet.
    pub capabilities: u64,
}

impl Hello {
    /// What this code says.
    pub const OURS: Self = Self { oldest: GENERATION_OLDEST, newest: GENERATION, capabilities: 0 };

    /// The frame that says it.
    pub fn to_frame(self) -> Frame {
        let mut body = BytesMut::with_capacity(LEN);
        body.put_slice(&MAGIC);
        body.put_u16_le(self.oldest);
        body.put_u16_le(self.newest);
        body.put_u64_le(self.capabilities);
        Frame { stream: 0, kind: Kind::Hello.byte(), flags: 0, body: body.freeze() }
    }

    /// Reads the peer's first frame.
    ///
    /// # Errors
    /// [`Error::NotHello`] when the frame is anything else.
    pub fn from_frame(frame: &Frame) -> Result<Self, Error> {
        let mut body: Bytes = frame.body.clone();
        if frame.kind != Kind::Hello.byte() || body.len() < LEN || body[..8] != MAGIC {
            return Err(Error::NotHello);
        }
        body.advance(MAGIC.len());
        Ok(Self {
            oldest: body.get_u16_le(),
            newest: body.get_u16_le(),
            capabilities: body.get_u64_le(),
        })
    }
}

/// The generation both ends speak: the newest they share.
///
/// # Errors
/// [`Error::Generation`] with all four numbers when they share none.
pub const fn negotiate(ours: Hello, theirs: Hello) -> Result<u16, Error> {
    let newest = if ours.newest < theirs.newest { ours.newest } else { theirs.newest };
    let oldest = if ours.oldest > theirs.oldest { ours.oldest } else { theirs.oldest };
    if newest >= oldest {
        return Ok(newest);
    }
    Err(Error::Generation {
        theirs_oldest: theirs.oldest,
        theirs_newest: theirs.newest,
        ours_oldest: ours.oldest,
        ours_newest: ours.newest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn spans(oldest: u16, newest: u16) -> Hello {
        Hello { oldest, newest, capabilities: 0 }
    }

    #[test]
    fn newest_shared_generation_wins() {
        for (ours, theirs, agreed) in [
            (spans(1, 1), spans(1, 1), Some(1)),
            (spans(1, 3), spans(2, 5), Some(3)),
            (spans(2, 5), spans(1, 3), Some(3)),
            (spans(4, 5), spans(1, 3), None),
            (spans(1, 3), spans(4, 5), None),
        ] {
            assert_eq!(negotiate(ours, theirs).ok(), agreed, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn hello_bytes_are_fixed_forever() {
        let frame = Hello { oldest: 1, newest: 2, capabilities: 3 }.to_frame();
        assert_eq!(&frame.body[..], b"msbagent\x01\0\x02\0\x03\0\0\0\0\0\0\0");
        assert_eq!(frame.header(), [26, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }

    #[test]
    fn other_first_frames_are_refused() {
        let mut frame = Hello::OURS.to_frame();
        frame.kind = Kind::Ready.byte();
        assert_eq!(Hello::from_frame(&frame), Err(Error::NotHello));
        let mut frame = Hello::OURS.to_frame();
        frame.body.truncate(LEN - 1);
        assert_eq!(Hello::from_frame(&frame), Err(Error::NotHello));
        let longer = [&Hello::OURS.to_frame().body[..], b"more"].concat();
        let frame = Frame { body: longer.into(), ..Hello::OURS.to_frame() };
        assert_eq!(Hello::from_frame(&frame), Ok(Hello::OURS));
    }
}
