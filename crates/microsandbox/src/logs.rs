//! The logs of a sandbox: what commands wrote, what the console and the supervisor said.

mod text;

use std::collections::VecDeque;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use microsandbox_runtime::{ExecContent, ExecLogReader, ExecRecord, LogWatch, SandboxDir};

use self::text::TextLog;
use crate::{MicrosandboxError, MicrosandboxResult, thread::on_thread};

/// Where an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogSource {
    /// The guest's console.
    Kernel,
    /// The supervisor and the VMM.
    Runtime,
    /// Standard error of commands.
    Stderr,
    /// Standard output of commands, or their terminals.
    Stdout,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogEntry {
    /// When it came; the console says no times.
    pub time: Option<DateTime<Utc>>,
    /// Where it comes from.
    pub source: LogSource,
    /// Number of the command, counted over all runs of the sandbox.
    pub exec: Option<u64>,
    /// The bytes as they were written: a line of the console or the supervisor, and whatever a
    /// command wrote at once.
    pub data: Bytes,
    /// So many bytes of the command are missing here; 0 when nobody knows how many. `data` is empty
    /// then.
    pub missing: Option<u64>,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Only the last lines, so many.
    pub tail: Option<usize>,
    /// Only what came at that time or later. Leaves out what has no time.
    pub since: Option<DateTime<Utc>>,
    /// Only what came before that time. Leaves out what has no time.
    pub until: Option<DateTime<Utc>>,
    /// From where; none: [`LogSource::Stdout`] and [`LogSource::Stderr`].
    pub sources: Vec<LogSource>,
}

/// Which entries are wanted, and those that come after them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogStreamOptions {
    /// Of what is there already only the last lines, so many.
    pub tail: Option<usize>,
    /// Only what came at that time or later. Leaves out what has no time.
    pub since: Option<DateTime<Utc>>,
    /// From where; none: [`LogSource::Stdout`] and [`LogSource::Stderr`].
    pub sources: Vec<LogSource>,
}

impl LogOptions {
    fn wants(&self, source: LogSource) -> bool {
        match self.sources.as_slice() {
            [] => matches!(source, LogSource::Stdout | LogSource::Stderr),
            sources => sources.contains(&source),
        }
    }

    fn takes(&self, entry: &LogEntry) -> bool {
        self.wants(entry.source)
            && self.since.is_none_or(|since| entry.time.is_some_and(|time| time >= since))
            && self.until.is_none_or(|until| entry.time.is_some_and(|time| time < until))
    }
}

/// All entries there are, in the order of their sources: console, supervisor, commands.
pub(crate) async fn read(
    dir: &SandboxDir,
    options: &LogOptions,
) -> MicrosandboxResult<Vec<LogEntry>> {
    let mut logs = Logs::new(dir, options.clone());
    let entries = on_thread("read-logs", move || logs.read_all()).await?;
    Ok(tail(entries, options.tail))
}

/// Entries as they come.
#[derive(Debug)]
pub struct LogStream {
    logs: Option<Logs>,
    /// None for a sandbox that never ran.
    watch: Option<LogWatch>,
    ready: VecDeque<LogEntry>,
    last: bool,
}

impl LogStream {
    pub(crate) async fn begin(
        dir: &SandboxDir,
        options: &LogStreamOptions,
    ) -> MicrosandboxResult<Self> {
        let LogStreamOptions { tail: lines, since, sources } = options.clone();
        let options = LogOptions { tail: None, since, until: None, sources };
        // Before reading: what comes in between wakes the stream.
        let watch = if dir.logs_path().exists() { Some(LogWatch::new(dir)?) } else { None };
        let logs = Some(Logs::new(dir, options));
        let mut stream = Self { logs, watch, ready: VecDeque::new(), last: false };
        stream.look().await?;
        stream.ready = tail(stream.ready.into(), lines).into();
        Ok(stream)
    }

    /// The next entry; `None` when the run has ended and everything was read.
    ///
    /// # Errors
    /// [`MicrosandboxError::File`] when a log cannot be read.
    ///
    /// # Cancel safety
    /// Not cancel safe: a stream whose reading was cut off has ended.
    pub async fn recv(&mut self) -> MicrosandboxResult<Option<LogEntry>> {
        loop {
            if let Some(entry) = self.ready.pop_front() {
                return Ok(Some(entry));
            }
            if self.last {
                return Ok(None);
            }
            if let Some(watch) = &self.watch {
                watch.changed().await?;
            }
            self.look().await?;
        }
    }

    /// Reads what is there. Whether the run has ended is asked first: what came until then is read.
    async fn look(&mut self) -> MicrosandboxResult<()> {
        let has_ended = self.watch.as_ref().map_or(Ok(true), LogWatch::has_ended)?;
        self.last = true;
        let Some(mut logs) = self.logs.take() else { return Ok(()) };
        let read = on_thread("read-logs", move || {
            let entries = logs.read_all()?;
            Ok::<_, MicrosandboxError>((logs, entries))
        });
        let (logs, entries) = read.await?;
        self.logs = Some(logs);
        self.ready.extend(entries);
        self.last = has_ended;
        Ok(())
    }
}

/// Every log that is wanted, read as far as it was.
#[derive(Debug)]
struct Logs {
    options: LogOptions,
    text: Vec<TextLog>,
    exec: ExecLogReader,
    dir: SandboxDir,
}

impl Logs {
    fn new(dir: &SandboxDir, options: LogOptions) -> Self {
        let text = [
            (LogSource::Kernel, dir.kernel_log_path()),
            (LogSource::Runtime, dir.runtime_log_path()),
        ];
        let wanted = text.into_iter().filter(|(source, _)| options.wants(*source));
        let text = wanted.map(|(source, path)| TextLog::new(source, path)).collect();
        let exec = ExecLogReader::new(dir.logs_path());
        Self { options, text, exec, dir: dir.clone() }
    }

    /// What follows what was read before.
    fn read_all(&mut self) -> MicrosandboxResult<Vec<LogEntry>> {
        let Self { options, text, exec, dir } = self;
        let mut entries = Vec::new();
        for log in text {
            log.read(|entry| entries.push(entry))?;
        }
        while options.wants(LogSource::Stdout) || options.wants(LogSource::Stderr) {
            let records = exec.read();
            let records = records.map_err(MicrosandboxError::file("read", dir.exec_log_path()))?;
            if records.is_empty() {
                break;
            }
            entries.extend(records.into_iter().map(entry));
        }
        entries.retain(|entry| options.takes(entry));
        Ok(entries)
    }
}

fn entry(record: ExecRecord) -> LogEntry {
    let (source, data, missing) = match record.content {
        ExecContent::Stdout(data) => (LogSource::Stdout, data, None),
        ExecContent::Stderr(data) => (LogSource::Stderr, data, None),
        ExecContent::Missing(bytes) => (LogSource::Stdout, Bytes::new(), Some(bytes)),
    };
    LogEntry {
        time: DateTime::from_timestamp_micros(record.time_us).filter(|_| record.time_us > 0),
        source,
        exec: Some(record.exec).filter(|exec| *exec > 0),
        data,
        missing,
    }
}

/// The last `lines` lines of all entries together. A line end at the very end begins no line.
fn tail(mut entries: Vec<LogEntry>, lines: Option<usize>) -> Vec<LogEntry> {
    let Some(mut to_pass) = lines else { return entries };
    if to_pass == 0 {
        return Vec::new();
    }
    let mut is_end = true;
    for index in (0..entries.len()).rev() {
        let data = entries[index].data.clone();
        for (at, byte) in data.iter().enumerate().rev() {
            if *byte == b'\n' && !is_end {
                to_pass -= 1;
            }
            is_end = false;
            if to_pass == 0 {
                entries[index].data = data.slice(at + 1..);
                entries.drain(..index);
                entries.retain(|entry| !entry.data.is_empty() || entry.missing.is_some());
                return entries;
            }
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_begins_at_the_line_asked_for() {
        let entries = |pieces: &[&'static str]| {
            let entry = |piece: &&'static str| LogEntry {
                time: None,
                source: LogSource::Stdout,
                exec: None,
                data: Bytes::from_static(piece.as_bytes()),
                missing: None,
            };
            pieces.iter().map(entry).collect::<Vec<_>>()
        };
        for (pieces, lines, expected) in [
            (&["a\nb\nc\n"][..], 2, &["b\nc\n"][..]),
            (&["a\nb", "\nc"], 2, &["b", "\nc"]),
            (&["a\n", "b\n", "c\n"], 2, &["b\n", "c\n"]),
            (&["a\n", "b\n"], 9, &["a\n", "b\n"]),
            (&["a\n", "b\n"], 0, &[]),
            (&["a"], 0, &[]),
            (&["\n\n"], 1, &["\n"]),
            (&[], 5, &[]),
        ] {
            assert_eq!(tail(entries(pieces), Some(lines)), entries(expected), "{pieces:?} {lines}");
        }
    }
}
