//! The log of what commands wrote: records in a few files of bounded size.
//!
//! `docs/formats/exec-log.md` has the layout. Written by the supervisor alone (`writer`), read by
//! anyone while it grows or after (`reader`). Records are binary because the bytes of a command are
//! kept exactly and cost nothing to frame; who wants text or JSON asks the reader.

mod reader;
mod writer;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use reader::ExecLogReader;
pub(crate) use writer::ExecLog;

/// A piece of a command's output, or a hole in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRecord {
    /// When the supervisor had it, microseconds since 1970-01-01T00:00:00Z.
    pub time_us: i64,
    /// Number of the command in this log; 0 in a hole whose commands are not known.
    pub exec: u64,
    /// What it is.
    pub content: ExecContent,
}

/// What a record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecContent {
    /// Standard output, or the terminal.
    Stdout(Bytes),
    /// Standard error.
    Stderr(Bytes),
    /// Bytes of both that are missing here: 0 when nobody knows how many.
    Missing(u64),
}

/// Size at which a file gives way to the next.
const FILE_BYTES: u64 = 8 << 20;

/// Files kept: the newest, `exec.log`, and `.1` and `.2` before it.
const FILES: usize = 3;

/// Begins every file: magic, version 1, and after it the number of the file, one more each time.
const MAGIC: [u8; 8] = *b"msbexec\x01";

const FILE_HEADER: usize = MAGIC.len() + 8;
const RECORD_HEADER: usize = 24;

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const MISSING: u8 = 3;

fn file_name(age: usize) -> String {
    if age == 0 { "exec.log".to_owned() } else { format!("exec.log.{age}") }
}

fn file_header(number: u64) -> [u8; FILE_HEADER] {
    let mut header = [0; FILE_HEADER];
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    header[MAGIC.len()..].copy_from_slice(&number.to_le_bytes());
    header
}

/// The number of a file that begins with `bytes`; `None` for one that is no log of this version.
fn file_number(bytes: &[u8]) -> Option<u64> {
    let number = bytes.strip_prefix(&MAGIC)?.first_chunk()?;
    Some(u64::from_le_bytes(*number))
}

impl ExecRecord {
    fn header(&self) -> [u8; RECORD_HEADER] {
        let (kind, len) = match &self.content {
            ExecContent::Stdout(bytes) => (STDOUT, bytes.len()),
            ExecContent::Stderr(bytes) => (STDERR, bytes.len()),
            ExecContent::Missing(_) => (MISSING, size_of::<u64>()),
        };
        let mut header = [0; RECORD_HEADER];
        let mut out = &mut header[..];
        out.put_u32_le(u32::try_from(len).expect("a frame's body is shorter"));
        out.put_u32_le(u32::from(kind));
        out.put_u64_le(self.exec);
        out.put_i64_le(self.time_us);
        header
    }

    fn body(&self) -> Bytes {
        match &self.content {
            ExecContent::Stdout(bytes) | ExecContent::Stderr(bytes) => bytes.clone(),
            ExecContent::Missing(bytes) => Bytes::copy_from_slice(&bytes.to_le_bytes()),
        }
    }
}

/// Takes whole records from the front of `bytes`; what is left is the beginning of one.
///
/// `None` when they are no records: the place of the next one is unknown then.
fn take_records(bytes: &mut BytesMut) -> Option<Vec<ExecRecord>> {
    let mut records = Vec::new();
    while let Some(mut header) = bytes.get(..RECORD_HEADER) {
        let (len, kind) = (header.get_u32_le() as usize, header.get_u32_le());
        let (exec, time_us) = (header.get_u64_le(), header.get_i64_le());
        if len > microsandbox_protocol::MAX_BODY_LEN {
            return None;
        }
        if bytes.len() < RECORD_HEADER + len {
            break;
        }
        let mut body = bytes.split_to(RECORD_HEADER + len).freeze();
        body.advance(RECORD_HEADER);
        let content = match u8::try_from(kind) {
            Ok(STDOUT) => ExecContent::Stdout(body),
            Ok(STDERR) => ExecContent::Stderr(body),
            Ok(MISSING) => ExecContent::Missing(body.try_get_u64_le().ok()?),
            // Of a later version: skipped by its length.
            _ => continue,
        };
        records.push(ExecRecord { time_us, exec, content });
    }
    Some(records)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_of_version_1_are_fixed() {
        assert_eq!(file_header(7), *b"msbexec\x01\x07\0\0\0\0\0\0\0");
        let record = |content| ExecRecord { time_us: 0x0102, exec: 9, content };
        for (record, expected) in [
            (
                record(ExecContent::Stdout(Bytes::from_static(b"hi\n"))),
                &b"\x03\0\0\0\x01\0\0\0\x09\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0hi\n"[..],
            ),
            (
                record(ExecContent::Stderr(Bytes::new())),
                b"\0\0\0\0\x02\0\0\0\x09\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0",
            ),
            (
                record(ExecContent::Missing(5)),
                b"\x08\0\0\0\x03\0\0\0\x09\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
            ),
        ] {
            let written = [&record.header()[..], &record.body()].concat();
            assert_eq!(written, expected);
            let mut bytes = BytesMut::from(&written[..]);
            assert_eq!(take_records(&mut bytes), Some(vec![record]));
            assert!(bytes.is_empty());
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics_on_garbage(garbage in prop::collection::vec(any::<u8>(), 0..512)) {
            let mut bytes = BytesMut::from(&garbage[..]);
            let _records = take_records(&mut bytes);
        }
    }
}
