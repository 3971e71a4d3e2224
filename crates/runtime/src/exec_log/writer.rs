//! Writing the log beside the relay, which never waits for it.
//!
//! ```text
//!  relay ──▶ queue, bounded ──▶ thread ──▶ exec.log ─▶ exec.log.1 ─▶ exec.log.2
//!              └ full: the bytes are counted, and a hole of that size is written
//! ```

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, IoSlice, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::{sync::oneshot, time::timeout};

use super::{
    ExecContent, ExecRecord, FILE_BYTES, FILE_HEADER, FILES, RECORD_HEADER, file_header, file_name,
    file_number, take_records,
};

/// Output that may wait for the disk. More than a burst needs, and little beside a guest.
const QUEUE_BYTES: usize = 4 << 20;

/// Time for the thread to write what waits when the sandbox ends.
const CLOSE: Duration = Duration::from_secs(2);

/// The relay's end of the log.
#[derive(Debug)]
pub(crate) struct ExecLog {
    queue: Sender<ExecRecord>,
    waiting: Arc<AtomicUsize>,
    /// Bytes of commands that found the queue full.
    lost: HashMap<u64, u64>,
    next_exec: u64,
    closed: oneshot::Receiver<()>,
}

impl ExecLog {
    /// Starts the thread that writes into the folder `logs`.
    ///
    /// # Errors
    /// When there can be no thread. What the disk says is said in the log of the supervisor.
    pub(crate) fn start(logs: PathBuf) -> io::Result<Self> {
        let (queue, records) = channel();
        let waiting = Arc::new(AtomicUsize::new(0));
        let (done, closed) = oneshot::channel();
        let written = Arc::clone(&waiting);
        let write = move || {
            Files::new(logs).write_all(&records, &written);
            let _nobody_waits = done.send(());
        };
        std::thread::Builder::new()
            .name("msb-exec-log".into())
            .stack_size(64 << 10)
            .spawn(write)?;
        Ok(Self { queue, waiting, lost: HashMap::new(), next_exec: 1, closed })
    }

    /// A number for a command that starts now.
    pub(crate) fn begin(&mut self) -> u64 {
        let exec = self.next_exec;
        self.next_exec += 1;
        exec
    }

    /// Takes output of the command `exec`. Never waits.
    pub(crate) fn write(&mut self, exec: u64, content: ExecContent) {
        let len = content.len();
        if self.waiting.load(Ordering::Relaxed) + len > QUEUE_BYTES {
            *self.lost.entry(exec).or_default() += len as u64;
            return;
        }
        self.tell_lost(exec);
        self.push(exec, content);
    }

    /// The command has ended: nothing more of it comes.
    pub(crate) fn end(&mut self, exec: u64) {
        self.tell_lost(exec);
    }

    fn tell_lost(&mut self, exec: u64) {
        if let Some(bytes) = self.lost.remove(&exec) {
            self.push(exec, ExecContent::Missing(bytes));
        }
    }

    fn push(&self, exec: u64, content: ExecContent) {
        self.waiting.fetch_add(content.len(), Ordering::Relaxed);
        // The thread ends after its sender alone.
        let _gone = self.queue.send(ExecRecord { time_us: now_us(), exec, content });
    }

    /// Returns once everything is written, or the disk takes too long.
    pub(crate) async fn close(self) {
        drop(self.queue);
        if timeout(CLOSE, self.closed).await.is_err() {
            tracing::warn!("the log of commands is incomplete: the disk did not take it in time");
        }
    }
}

impl ExecContent {
    fn len(&self) -> usize {
        match self {
            Self::Stdout(bytes) | Self::Stderr(bytes) => bytes.len(),
            Self::Missing(_) => 0,
        }
    }
}

fn now_us() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_micros()).unwrap_or(i64::MAX)
}

/// The files, by the thread that writes them.
struct Files {
    logs: PathBuf,
    current: Option<Current>,
    /// Added to the numbers of this run: those of earlier runs are in the files.
    earlier_execs: u64,
    /// Bytes of commands that the disk did not take.
    lost: HashMap<u64, u64>,
    /// The disk took the last record; told once when it changes.
    well: bool,
}

struct Current {
    file: File,
    number: u64,
    len: u64,
}

impl Files {
    fn new(logs: PathBuf) -> Self {
        Self { logs, current: None, earlier_execs: 0, lost: HashMap::new(), well: true }
    }

    fn write_all(mut self, records: &Receiver<ExecRecord>, waiting: &AtomicUsize) {
        self.take_up();
        for mut record in records {
            let len = record.content.len();
            record.exec += self.earlier_execs;
            let written =
                self.tell_lost(record.exec, record.time_us).and_then(|()| self.put(&record));
            if written.is_err() {
                let missing = match record.content {
                    ExecContent::Missing(bytes) => bytes,
                    _ => len as u64,
                };
                *self.lost.entry(record.exec).or_default() += missing;
            }
            self.note(&written);
            waiting.fetch_sub(len, Ordering::Relaxed);
        }
    }

    /// Goes on after the last whole record of an earlier run.
    fn take_up(&mut self) {
        match Current::take_up(&self.logs.join(file_name(0))) {
            Ok(Some((current, last_exec))) => {
                self.current = Some(current);
                self.earlier_execs = last_exec;
            }
            Ok(None) => {}
            Err(error) => self.note(&Err(error)),
        }
    }

    fn note(&mut self, written: &io::Result<()>) {
        if let Err(error) = written
            && self.well
        {
            tracing::warn!(logs = %self.logs.display(), %error, "the log of commands is not written");
        }
        self.well = written.is_ok();
    }

    fn tell_lost(&mut self, exec: u64, time_us: i64) -> io::Result<()> {
        let Some(bytes) = self.lost.get(&exec) else { return Ok(()) };
        self.put(&ExecRecord { time_us, exec, content: ExecContent::Missing(*bytes) })?;
        self.lost.remove(&exec);
        Ok(())
    }

    fn put(&mut self, record: &ExecRecord) -> io::Result<()> {
        if self.current.as_ref().is_none_or(|current| current.len >= FILE_BYTES) {
            self.rotate()?;
        }
        self.current.as_mut().map_or(Ok(()), |current| current.append(record))
    }

    /// Moves every file one on and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let number = self.current.as_ref().map_or(1, |current| current.number + 1);
        for age in (0..FILES - 1).rev() {
            let (from, to) = (self.logs.join(file_name(age)), self.logs.join(file_name(age + 1)));
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        // Whatever happens next, the file that was moved is not written to any more.
        self.current = None;
        self.current = Some(Current::begin(&self.logs.join(file_name(0)), number)?);
        Ok(())
    }
}

impl Current {
    /// A new file, which must not exist; on a failure it does not.
    fn begin(path: &Path, number: u64) -> io::Result<Self> {
        let mut file = open().create_new(true).open(path)?;
        match file.write_all(&file_header(number)) {
            Ok(()) => Ok(Self { file, number, len: FILE_HEADER as u64 }),
            Err(error) => {
                fs::remove_file(path)?;
                Err(error)
            }
        }
    }

    /// The file of an earlier run, without the record that run did not finish, and the highest
    /// number of a command in it. `None` when there is none of this version.
    fn take_up(path: &Path) -> io::Result<Option<(Self, u64)>> {
        let mut file = match open().read(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Some(number) = file_number(&bytes) else {
            fs::remove_file(path)?;
            return Ok(None);
        };
        let mut records = BytesMut::from(&bytes[FILE_HEADER..]);
        let read = take_records(&mut records).unwrap_or_default();
        let len = (bytes.len() - records.len()) as u64;
        file.set_len(len)?;
        let last_exec = read.iter().map(|record| record.exec).max().unwrap_or(0);
        Ok(Some((Self { file, number, len }, last_exec)))
    }

    /// Appends all of it or, where the disk does not take it, nothing.
    fn append(&mut self, record: &ExecRecord) -> io::Result<()> {
        let (header, body) = (record.header(), record.body());
        let written = write_both(&mut self.file, &header, &body);
        match written {
            Ok(()) => self.len += (RECORD_HEADER + body.len()) as u64,
            Err(_) => self.file.set_len(self.len)?,
        }
        written
    }
}

fn open() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).mode(0o600);
    options
}

fn write_both(file: &mut File, header: &[u8], body: &Bytes) -> io::Result<()> {
    let written = file.write_vectored(&[IoSlice::new(header), IoSlice::new(body)])?;
    match written.checked_sub(header.len()) {
        Some(of_body) => file.write_all(&body[of_body..]),
        None => {
            file.write_all(&header[written..])?;
            file.write_all(body)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec_log::ExecLogReader;

    fn bytes(len: usize) -> ExecContent {
        ExecContent::Stdout(Bytes::from(vec![b'x'; len]))
    }

    async fn write(logs: &Path, contents: &[ExecContent]) {
        let mut log = ExecLog::start(logs.to_owned()).unwrap();
        let exec = log.begin();
        for content in contents {
            log.write(exec, content.clone());
        }
        log.end(exec);
        log.close().await;
    }

    fn read(logs: &Path) -> Vec<(u64, ExecContent)> {
        let mut reader = ExecLogReader::new(logs);
        let mut all = Vec::new();
        loop {
            let more = reader.read().unwrap();
            if more.is_empty() {
                return all;
            }
            all.extend(more.into_iter().map(|record| (record.exec, record.content)));
        }
    }

    #[tokio::test]
    async fn output_is_read_back_as_it_was_over_several_runs() {
        let logs = tempfile::tempdir().unwrap();
        let error = ExecContent::Stderr(Bytes::from_static(b"\xff\0"));
        write(logs.path(), &[bytes(3), error.clone()]).await;
        write(logs.path(), &[bytes(1)]).await;
        assert_eq!(read(logs.path()), [(1, bytes(3)), (1, error), (2, bytes(1))]);
    }

    #[tokio::test]
    async fn what_a_killed_supervisor_left_half_written_is_cut_off() {
        let logs = tempfile::tempdir().unwrap();
        write(logs.path(), &[bytes(3), bytes(5)]).await;
        let path = logs.path().join("exec.log");
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert_eq!(read(logs.path()), [(1, bytes(3))]);
        write(logs.path(), &[bytes(7)]).await;
        assert_eq!(read(logs.path()), [(1, bytes(3)), (2, bytes(7))]);
    }

    #[tokio::test]
    async fn log_is_bounded_and_what_does_not_fit_the_queue_is_a_hole() {
        let logs = tempfile::tempdir().unwrap();
        let piece = 512 << 10;
        let contents = vec![bytes(piece); 200];
        write(logs.path(), &contents).await;
        let entries = fs::read_dir(logs.path()).unwrap();
        let on_disk: u64 = entries.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(on_disk < (FILE_BYTES + 2 * piece as u64) * FILES as u64, "{on_disk} bytes");

        // A thread that cannot keep up: nothing is lost without a mark.
        let logs = tempfile::tempdir().unwrap();
        write(logs.path(), &vec![bytes(piece); 40]).await;
        let kept: u64 = read(logs.path())
            .iter()
            .map(|(_, content)| match content {
                ExecContent::Missing(bytes) => *bytes,
                other => other.len() as u64,
            })
            .sum();
        assert_eq!(kept, 40 * piece as u64);
    }

    #[tokio::test]
    async fn a_folder_that_takes_nothing_costs_the_log_alone() {
        let logs = tempfile::tempdir().unwrap();
        let missing = logs.path().join("missing");
        write(&missing, &[bytes(3)]).await;
        assert_eq!(read(&missing), []);
    }
}
