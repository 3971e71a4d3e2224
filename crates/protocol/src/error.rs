//! What can be wrong with bytes that claim to be this protocol.

use crate::Kind;

/// Why bytes from the peer were refused. The connection cannot go on after any of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The body is not what its kind promises.
    #[error("decode the body of a {kind:?} frame ({len} bytes)")]
    DecodeBody {
        /// Kind the frame names.
        kind: Kind,
        /// Length of the body in bytes.
        len: usize,
        /// What postcard found.
        #[source]
        source: postcard::Error,
    },
    /// A length field is outside the range every frame keeps to.
    #[error("accept a frame of {len} bytes: a frame has {min} to {max}")]
    FrameLength {
        /// The length field as received.
        len: u32,
        /// Smallest legal value.
        min: u32,
        /// Largest legal value.
        max: u32,
    },
    /// No protocol generation is spoken by both ends.
    #[error(
        "agree on a protocol generation: the peer speaks {theirs_oldest} to {theirs_newest}, \
         this end {ours_oldest} to {ours_newest}"
    )]
    Generation {
        /// Oldest generation the peer speaks.
        theirs_oldest: u16,
        /// Newest generation the peer speaks.
        theirs_newest: u16,
        /// Oldest generation this end speaks.
        ours_oldest: u16,
        /// Newest generation this end speaks.
        ours_newest: u16,
    },
    /// The first frame is not a `Hello`, or its magic is another.
    #[error("recognise the peer: its first frame is not a microsandbox hello")]
    NotHello,
    /// The frame is of another kind than the conversation allows here.
    #[error("expect a {expected:?} frame: got kind {got}")]
    UnexpectedKind {
        /// Kind that may come here.
        expected: Kind,
        /// Kind byte as received.
        got: u8,
    },
}
