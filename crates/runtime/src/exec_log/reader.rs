//! Reading the log, from its oldest record on, while it is written or after.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use bytes::{BufMut, BytesMut};

use super::{ExecContent, ExecRecord, FILE_HEADER, FILES, file_name, file_number, take_records};

/// Reads records in order; takes no lock and changes nothing.
#[derive(Debug)]
pub struct ExecLogReader {
    logs: PathBuf,
    open: Option<Open>,
    /// Number of the last file that was read to its end.
    done: Option<u64>,
}

#[derive(Debug)]
struct Open {
    file: File,
    number: u64,
    /// Read and not yet whole records.
    rest: BytesMut,
    /// It holds something that is no record: nothing more can be read.
    broken: bool,
}

impl ExecLogReader {
    /// A reader of the log in the folder `logs`, at its oldest record.
    pub fn new(logs: impl Into<PathBuf>) -> Self {
        Self { logs: logs.into(), open: None, done: None }
    }

    /// The records that follow; none when there are no more yet.
    ///
    /// Files that were given up before they were read are told by [`ExecContent::Missing`].
    ///
    /// # Errors
    /// What the kernel reported of the files. A log that was never written is empty.
    pub fn read(&mut self) -> io::Result<Vec<ExecRecord>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some((open, skipped)) = self.next_file()? else { return Ok(Vec::new()) };
                self.open = Some(open);
                if skipped {
                    return Ok(vec![missing()]);
                }
                continue;
            };
            // Looked for before reading: a file with a successor is not written to any more.
            let number = open.number;
            let has_successor = newest(&self.logs)?.is_some_and(|newest| newest > number);
            let records = self.open.as_mut().map_or_else(|| Ok(Vec::new()), Open::read)?;
            if has_successor {
                self.open = None;
                self.done = Some(number);
            }
            if !records.is_empty() || !has_successor {
                return Ok(records);
            }
        }
    }

    /// The oldest file that is not done, and whether others between were given up.
    fn next_file(&self) -> io::Result<Option<(Open, bool)>> {
        let mut found: Option<Open> = None;
        for age in 0..FILES {
            let Some(open) = Open::new(&self.logs.join(file_name(age)))? else { continue };
            let is_next = self.done.is_none_or(|done| open.number > done);
            if is_next && found.as_ref().is_none_or(|best| open.number < best.number) {
                found = Some(open);
            }
        }
        let skipped = |open: &Open| self.done.is_some_and(|done| open.number > done + 1);
        Ok(found.map(|open| {
            let skipped = skipped(&open);
            (open, skipped)
        }))
    }
}

fn missing() -> ExecRecord {
    ExecRecord { time_us: 0, exec: 0, content: ExecContent::Missing(0) }
}

fn newest(logs: &Path) -> io::Result<Option<u64>> {
    Ok(Open::new(&logs.join(file_name(0)))?.map(|open| open.number))
}

impl Open {
    /// Opens a file; `None` when it is not there, or nothing is in it yet.
    fn new(path: &Path) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut header = Vec::with_capacity(FILE_HEADER);
        file.by_ref().take(FILE_HEADER as u64).read_to_end(&mut header)?;
        let number = file_number(&header);
        Ok(number.map(|number| Self { file, number, rest: BytesMut::new(), broken: false }))
    }

    fn read(&mut self) -> io::Result<Vec<ExecRecord>> {
        if self.broken {
            return Ok(Vec::new());
        }
        let mut bytes = Vec::new();
        self.file.read_to_end(&mut bytes)?;
        self.rest.put_slice(&bytes);
        Ok(take_records(&mut self.rest).unwrap_or_else(|| {
            self.broken = true;
            vec![missing()]
        }))
    }
}
