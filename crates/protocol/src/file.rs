//! File operations: the body that opens a file stream, and what comes back on it.
//!
//! A file stream goes on like that of a command: [`crate::ExecStarted`], `Stdin` within the agent's
//! window, `Stdout` within the client's, [`crate::ExecExited`] after all of it. What the bytes are
//! depends on the operation:
//!
//! ```text
//!  operation        Stdin                    Stdout
//!  Stat             -                        one record: FileMetadata
//!  List             -                        records: FileEntry, in no order
//!  Read             -                        the bytes
//!  Write            the bytes, END: keep     -
//!  ReadLink         -                        the target
//!  Pack             -                        a tar stream
//!  Unpack           a tar stream             -
//!  all others       -                        -
//!
//!  record: len u32 LE | postcard struct, len bytes
//! ```
//!
//! Exit code 0 is success. With 1, `Stderr` is one [`FileFailed`] in postcard. Any other end is a
//! fault of the agent, and `Stderr` is text. A stream that the client kills leaves nothing of the
//! file it was writing.

use bytes::{Buf, Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Timestamp, code::code};

/// Longest path (`PATH_MAX` of Linux, which counts the closing NUL).
pub const MAX_PATH_LEN: usize = 4095;

/// Longest name within a directory (`NAME_MAX` of Linux).
pub const MAX_NAME_LEN: usize = 255;

/// Longest record on `Stdout`: a name, its metadata and room to grow.
pub const MAX_RECORD_LEN: usize = 4096;

/// Do this with files, on this stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileCall {
    /// Output bytes the client takes before it grants more. First, so that a relay finds it whatever
    /// the operation is.
    pub window: u32,
    /// What to do.
    pub operation: FileOperation,
}

/// A path of the guest: bytes without NUL, at most [`MAX_PATH_LEN`]. A relative one begins at `/`.
pub type PathBytes = serde_bytes::ByteBuf;

/// What to do with files. All of it is done as root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileOperation {
    /// Tell what is there.
    Stat {
        /// Of what.
        path: PathBytes,
        /// Whether a link at the end of the path stands for its target.
        follow: bool,
    },
    /// Tell what is in a directory.
    List {
        /// The directory.
        path: PathBytes,
    },
    /// Read a file.
    Read {
        /// The file.
        path: PathBytes,
        /// Byte to begin with.
        offset: u64,
        /// Most bytes; none: to the end.
        len: Option<u64>,
    },
    /// Write a file.
    Write {
        /// The file.
        path: PathBytes,
        /// What becomes of one that is there.
        how: WriteMode,
        /// Mode of a file that is made; none: 0644, or that of the file it takes the place of.
        mode: Option<u32>,
    },
    /// Make a directory.
    MakeDirectory {
        /// The directory.
        path: PathBytes,
        /// Make those above it too, and take one that is there.
        parents: bool,
        /// Its mode.
        mode: u32,
    },
    /// Remove anything but a directory. A link is removed, not what it leads to.
    Remove {
        /// What.
        path: PathBytes,
    },
    /// Remove a directory. No link is followed.
    RemoveDirectory {
        /// The directory.
        path: PathBytes,
        /// With all that is in it.
        recursive: bool,
    },
    /// Rename, replacing what may be replaced.
    Rename {
        /// What.
        from: PathBytes,
        /// New path, on the same file system.
        to: PathBytes,
    },
    /// Copy a file or a tree with modes, owners and times.
    Copy {
        /// What.
        from: PathBytes,
        /// Path of the copy.
        to: PathBytes,
    },
    /// Make a symbolic link.
    Symlink {
        /// What it says.
        target: PathBytes,
        /// Where it is.
        path: PathBytes,
    },
    /// Tell what a symbolic link says.
    ReadLink {
        /// The link.
        path: PathBytes,
    },
    /// Set mode, owner, times or length.
    SetAttributes {
        /// Of what.
        path: PathBytes,
        /// Whether a link at the end of the path stands for its target.
        follow: bool,
        /// What to set.
        attributes: FileAttributes,
    },
    /// Send a file or a tree as a tar stream.
    Pack {
        /// What.
        path: PathBytes,
        /// What it is called in the stream; empty: a directory's members stand at its top.
        name: PathBytes,
        /// Whether a link at the end of `path` stands for its target.
        follow: bool,
    },
    /// Make files of a tar stream. Nothing is made outside of `path`.
    Unpack {
        /// A directory.
        path: PathBytes,
        /// Every member is this one or lies below it; none: any name.
        only: Option<PathBytes>,
        /// Whether owners come from the stream; else they are root.
        owners: bool,
    },
}

/// What becomes of a file that is there when one is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WriteMode {
    /// The new one takes its place, whole, once the last byte has come. What is no file, such as a
    /// device, is written to.
    Replace,
    /// It is emptied and written to; links to it see the bytes as they come.
    Truncate,
    /// It is written to at its end.
    Append,
}

/// What to set; what is none stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileAttributes {
    /// Permissions, with set-id and sticky bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length; a file that grows has a hole at its end.
    pub size: Option<u64>,
    /// Time of the last access.
    pub accessed: Option<Timestamp>,
    /// Time of the last change of the contents.
    pub modified: Option<Timestamp>,
}

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name, at most [`MAX_NAME_LEN`] bytes.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// What it is; a link is a link.
    pub metadata: FileMetadata,
}

/// What the guest's file system says of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileMetadata {
    /// What it is.
    pub kind: FileKind,
    /// Length in bytes.
    pub size: u64,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it has.
    pub links: u64,
    /// Time of the last access.
    pub accessed: Timestamp,
    /// Time of the last change of the contents.
    pub modified: Timestamp,
    /// Time it was made, where the file system knows.
    pub created: Option<Timestamp>,
}

code! {
    /// What something in a directory is.
    FileKind, fallback Other {
        /// A kind this end has no name for.
        Other = 0,
        /// A file.
        File = 1,
        /// A directory.
        Directory = 2,
        /// A symbolic link.
        Symlink = 3,
        /// A character device.
        CharDevice = 4,
        /// A block device.
        BlockDevice = 5,
        /// A named pipe.
        Fifo = 6,
        /// A socket.
        Socket = 7,
    }
}

/// A file operation could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFailed {
    /// What was wrong.
    pub failure: FileFailure,
    /// Error number of the guest kernel, 0 when there is none.
    pub errno: i32,
    /// What was being done, a verb for people.
    pub action: String,
    /// What it was done with.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

code! {
    /// Why a file operation could not be done.
    FileFailure, fallback Other {
        /// A reason this end has no name for.
        Other = 0,
        /// The guest kernel refused: see the error number.
        Kernel = 1,
        /// The request makes no sense: a path is empty, too long or has a NUL.
        BadRequest = 2,
        /// The tar stream is none.
        BadArchive = 3,
        /// A member of the tar stream may not be made: its name leads elsewhere.
        RefusedMember = 4,
        /// A file became shorter while it was read.
        Changed = 5,
    }
}

/// The record that carries `value`.
///
/// # Panics
/// When it is longer than [`MAX_RECORD_LEN`], which no file system makes a name or a path.
pub fn to_record<T: Serialize>(value: &T) -> Vec<u8> {
    let body = postcard::to_stdvec(value).expect("plain structs always encode");
    let len = u32::try_from(body.len()).expect("far below 4 GiB");
    assert!(body.len() <= MAX_RECORD_LEN, "a record of {len} bytes");
    [&len.to_le_bytes()[..], &body].concat()
}

/// Cuts the bytes of a stream into records.
#[derive(Debug, Default)]
pub struct RecordDecoder {
    buffer: BytesMut,
}

/// Bytes that claim to be a record are none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read a record of {len} bytes")]
pub struct BadRecord {
    /// Length it claims, or has.
    pub len: usize,
}

impl RecordDecoder {
    /// Adds what has come.
    pub fn push(&mut self, bytes: &Bytes) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole record, or `None` until more bytes have come.
    ///
    /// # Errors
    /// [`BadRecord`] when its length is beyond [`MAX_RECORD_LEN`] or it is no `T`.
    pub fn next_record<T: DeserializeOwned>(&mut self) -> Result<Option<T>, BadRecord> {
        let Some(field) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*field) as usize;
        if len > MAX_RECORD_LEN {
            return Err(BadRecord { len });
        }
        if self.buffer.len() < 4 + len {
            return Ok(None);
        }
        self.buffer.advance(4);
        let record = postcard::from_bytes(&self.buffer[..len]).map_err(|_| BadRecord { len })?;
        self.buffer.advance(len);
        Ok(Some(record))
    }

    /// Whether every byte so far belonged to a whole record.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }
}

impl FileFailed {
    /// The bytes on `Stderr`.
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("plain structs always encode")
    }

    /// Reads what came on `Stderr`; `None` when it is none.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}

impl FileCall {
    /// As an argument of the process that does it: hexadecimal digits of the body.
    pub fn to_argument(&self) -> String {
        let body = postcard::to_stdvec(self).expect("plain structs always encode");
        body.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads what [`FileCall::to_argument`] gave.
    pub fn from_argument(argument: &[u8]) -> Option<Self> {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        };
        let body: Option<Vec<u8>> = argument.chunks(2).map(byte).collect();
        postcard::from_bytes(&body?).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(name: Vec<u8>, size: u64) -> FileEntry {
        let at = Timestamp { seconds: -1, nanoseconds: 5 };
        FileEntry {
            name,
            metadata: FileMetadata {
                kind: FileKind::File,
                size,
                mode: 0o644,
                uid: 0,
                gid: 0,
                links: 1,
                accessed: at,
                modified: at,
                created: None,
            },
        }
    }

    #[test]
    fn a_call_survives_as_an_argument() {
        let path = PathBytes::from(vec![b'/', 0xff, b'x']);
        let call = FileCall { window: 9, operation: FileOperation::List { path } };
        assert_eq!(FileCall::from_argument(call.to_argument().as_bytes()), Some(call));
        for argument in ["", "0", "zz", "00ff"] {
            assert_eq!(FileCall::from_argument(argument.as_bytes()), None, "{argument}");
        }
    }

    #[test]
    fn a_record_beyond_the_limit_is_refused_before_it_has_come() {
        let mut decoder = RecordDecoder::default();
        decoder.push(&Bytes::from_static(&[0, 0x20, 0, 0]));
        assert_eq!(decoder.next_record::<FileEntry>(), Err(BadRecord { len: 0x2000 }));
    }

    proptest! {
        #[test]
        fn records_survive_any_cut_of_the_stream(
            names in prop::collection::vec(prop::collection::vec(1u8.., 1..=MAX_NAME_LEN), 0..20),
            cut in 1usize..50,
        ) {
            let entries: Vec<FileEntry> =
                names.into_iter().zip(0..).map(|(name, size)| entry(name, size)).collect();
            let wire: Vec<u8> = entries.iter().flat_map(to_record).collect();
            let (mut decoder, mut seen) = (RecordDecoder::default(), Vec::new());
            for piece in wire.chunks(cut) {
                decoder.push(&Bytes::copy_from_slice(piece));
                while let Some(entry) = decoder.next_record::<FileEntry>().unwrap() {
                    seen.push(entry);
                }
            }
            prop_assert_eq!(seen, entries);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn garbage_is_no_record_and_no_panic(wire in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut decoder = RecordDecoder::default();
            decoder.push(&wire.clone().into());
            while let Ok(Some(_)) = decoder.next_record::<FileEntry>() {}
            let _ = FileFailed::from_bytes(&wire);
            let _ = FileCall::from_argument(&wire);
        }
    }
}
