//! A log of lines, read while it grows, is moved aside, or is begun anew.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use chrono::{DateTime, Utc};

use super::{LogEntry, LogSource};
use crate::{MicrosandboxError, MicrosandboxResult};

/// The console's or the supervisor's log.
#[derive(Debug)]
pub(super) struct TextLog {
    source: LogSource,
    path: PathBuf,
    open: Option<File>,
    /// Read and not yet given.
    rest: BytesMut,
    begun: bool,
}

impl TextLog {
    /// The log at `path`, with what was moved aside from it.
    pub(super) fn new(source: LogSource, path: PathBuf) -> Self {
        Self { source, path, open: None, rest: BytesMut::new(), begun: false }
    }

    /// Gives the lines that follow; what has no line end yet is given as it is.
    ///
    /// # Errors
    /// [`MicrosandboxError::File`]. A log that was never written is empty.
    pub(super) fn read(&mut self, mut take: impl FnMut(LogEntry)) -> MicrosandboxResult<()> {
        self.fill().map_err(MicrosandboxError::file("read", &self.path))?;
        while !self.rest.is_empty() {
            let end = self.rest.iter().position(|byte| *byte == b'\n');
            let data = self.rest.split_to(end.map_or(self.rest.len(), |end| end + 1)).freeze();
            take(self.entry(data));
        }
        Ok(())
    }

    fn entry(&self, data: Bytes) -> LogEntry {
        let time = if self.source == LogSource::Runtime { time_of(&data) } else { None };
        LogEntry { time, source: self.source, exec: None, data, missing: None }
    }

    fn fill(&mut self) -> io::Result<()> {
        if !self.begun {
            self.begun = true;
            if let Some(mut older) = open(&self.path.with_extension("log.1"))? {
                read_rest(&mut older, &mut self.rest)?;
            }
        }
        let current = open(&self.path)?;
        if let Some(file) = &mut self.open {
            if file.stream_position()? > file.metadata()?.len() {
                // Emptied by a new run.
                file.seek(SeekFrom::Start(0))?;
            }
            read_rest(file, &mut self.rest)?;
            if is_same(file, current.as_ref())? {
                return Ok(());
            }
        }
        // The first time, or the log was moved aside and begun anew.
        if let Some(mut file) = current {
            read_rest(&mut file, &mut self.rest)?;
            self.open = Some(file);
        }
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

fn read_rest(file: &mut File, rest: &mut BytesMut) -> io::Result<()> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    rest.extend_from_slice(&bytes);
    Ok(())
}

fn is_same(file: &File, other: Option<&File>) -> io::Result<bool> {
    let Some(other) = other else { return Ok(false) };
    let (file, other) = (file.metadata()?, other.metadata()?);
    Ok((file.dev(), file.ino()) == (other.dev(), other.ino()))
}

/// The time that a line of the supervisor begins with.
fn time_of(line: &[u8]) -> Option<DateTime<Utc>> {
    let first = line.split(|byte| *byte == b' ').next()?;
    let time = DateTime::parse_from_rfc3339(str::from_utf8(first).ok()?).ok()?;
    Some(time.to_utc())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn log_is_followed_over_its_moves_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runtime.log");
        let mut log = TextLog::new(LogSource::Runtime, path.clone());
        let mut read = || {
            let mut lines = Vec::new();
            log.read(|entry| lines.push(String::from_utf8(entry.data.to_vec()).unwrap())).unwrap();
            lines
        };
        fs::write(dir.path().join("runtime.log.1"), "older\n").unwrap();
        fs::write(&path, "a\nb").unwrap();
        assert_eq!(read(), ["older\n", "a\n", "b"]);
        File::options().append(true).open(&path).unwrap().write_all(b"c\n").unwrap();
        fs::rename(&path, dir.path().join("runtime.log.1")).unwrap();
        fs::write(&path, "d\n").unwrap();
        assert_eq!(read(), ["c\n", "d\n"]);
        fs::write(&path, "").unwrap();
        assert_eq!(read(), [""; 0]);
        fs::write(&path, "e\n").unwrap();
        assert_eq!(read(), ["e\n"]);
    }

    #[test]
    fn lines_of_the_supervisor_have_their_time() {
        let line = b"2026-01-02T03:04:05.000006Z  INFO started\n";
        let time = time_of(line).map(|time| time.timestamp_micros());
        assert_eq!(time, Some(1_767_323_045_000_006));
        assert_eq!(time_of(b"qemu: no time\n"), None);
    }
}
