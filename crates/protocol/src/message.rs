//! Messages: control bodies, each one postcard struct of one kind.

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, Frame, Kind, StreamId};

/// A control body: what [`Message::KIND`] frames carry.
///
/// A released body is never edited: postcard decodes an edited struct into garbage without an
/// error. A changed body is a new kind.
pub trait Message: Serialize + DeserializeOwned {
    /// Kind of the frames that carry this body.
    const KIND: Kind;

    /// The frame that carries `self` on `stream`.
    ///
    /// # Panics
    /// When the encoded body is longer than a frame can be, which only unbounded user data could
    /// cause: callers check such data (arguments, environment) with [`Message::fits`].
    fn to_frame(&self, stream: StreamId) -> Frame {
        let body = postcard::to_stdvec(self).expect("plain structs always encode");
        assert!(body.len() <= crate::MAX_BODY_LEN, "{:?} does not fit a frame", Self::KIND);
        Frame { stream, kind: Self::KIND.byte(), flags: 0, body: Bytes::from(body) }
    }

    /// Whether the encoded body fits one frame.
    fn fits(&self) -> bool {
        postcard::experimental::serialized_size(self).is_ok_and(|len| len <= crate::MAX_BODY_LEN)
    }

    /// Reads the body of a frame that must be of this kind.
    ///
    /// # Errors
    /// [`Error::UnexpectedKind`] or [`Error::DecodeBody`].
    fn from_frame(frame: &Frame) -> Result<Self, Error> {
        if frame.kind != Self::KIND.byte() {
            return Err(Error::UnexpectedKind { expected: Self::KIND, got: frame.kind });
        }
        postcard::from_bytes(&frame.body).map_err(|source| Error::DecodeBody {
            kind: Self::KIND,
            len: frame.body.len(),
            source,
        })
    }
}

macro_rules! message {
    ($($name:ident),* $(,)?) => {
        $(impl Message for crate::$name {
            const KIND: Kind = Kind::$name;
        })*
    };
}

message!(
    Become,
    BootFailed,
    Bootstrap,
    Concluded,
    Credit,
    Detach,
    Drain,
    Ended,
    Exec,
    ExecExited,
    ExecFailed,
    ExecStarted,
    FileCall,
    Held,
    Hold,
    JobAttached,
    JobCall,
    JobDetails,
    JobGap,
    JobInfo,
    JobUnknown,
    Jobs,
    Kill,
    LimitedExec,
    Metrics,
    MetricsCall,
    Pause,
    Ping,
    Pong,
    Ready,
    Rebirth,
    Release,
    Resize,
    Resume,
    Save,
    SetClock,
    Shutdown,
    Signal,
    StdinClosed,
    Stop,
    Stopped,
    Unsupported,
    Welcome,
);

/// The window that a frame which opens a file or job stream begins with.
///
/// It is found whatever follows it, so that a relay passes on operations it has never heard of.
///
/// # Errors
/// [`Error::DecodeBody`].
pub fn opening_window(frame: &Frame) -> Result<u32, Error> {
    let kind = Kind::from_byte(frame.kind).unwrap_or(Kind::FileCall);
    let decoded = postcard::take_from_bytes::<u32>(&frame.body);
    decoded.map(|(window, _)| window).map_err(|source| Error::DecodeBody {
        kind,
        len: frame.body.len(),
        source,
    })
}

impl Frame {
    /// A bulk frame with `bytes` as its body.
    pub const fn bulk(stream: StreamId, kind: Kind, bytes: Bytes) -> Self {
        Self { stream, kind: kind.byte(), flags: 0, body: bytes }
    }

    /// An empty bulk frame that tells end of file.
    pub const fn end(stream: StreamId, kind: Kind) -> Self {
        Self { stream, kind: kind.byte(), flags: crate::FLAG_END, body: Bytes::new() }
    }
}
