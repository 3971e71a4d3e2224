//! The guest's console: kept in `kernel.log` within bounds, its last lines at hand.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::oneshot;

/// Size at which the log moves to `.1`; a guest that floods its console costs twice this.
const MAX_LOG_BYTES: u64 = 1 << 20;

/// How much of the end is kept for exit records.
const TAIL_BYTES: usize = 8 << 10;

/// The last output of something, shared with the task that reads it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tail(Arc<Mutex<VecDeque<u8>>>);

impl Tail {
    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend(bytes);
        let surplus = tail.len().saturating_sub(TAIL_BYTES);
        tail.drain(..surplus);
    }

    /// What was last said, as text; carriage returns dropped.
    pub(crate) fn text(&self) -> String {
        let bytes: Vec<u8> = {
            let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            tail.iter().copied().filter(|byte| *byte != b'\r').collect()
        };
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The last line that is not empty.
    pub(crate) fn last_line(&self) -> Option<String> {
        self.text().lines().rev().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }

    /// The last line that contains `needle`.
    pub(crate) fn line_with(&self, needle: &str) -> Option<String> {
        self.text().lines().rev().find(|line| line.contains(needle)).map(|line| line.trim().into())
    }
}

/// A log file that is bounded by moving it aside.
#[derive(Debug)]
pub(crate) struct BoundedLog {
    path: PathBuf,
    file: File,
    len: u64,
}

impl BoundedLog {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = open_for_append(&path)?;
        let len = file.metadata()?.len();
        Ok(Self { path, file, len })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= MAX_LOG_BYTES {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            self.file = open_for_append(&self.path)?;
            self.len = 0;
        }
        self.len += bytes.len() as u64;
        self.file.write_all(bytes)
    }
}

fn open_for_append(path: &std::path::Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Reads `from` until it closes, keeping the end in the tail and all of it in `log`, if given.
///
/// On a thread, because terminals, pipes and sockets are all read alike that way and it sleeps in
/// the kernel. The receiver completes when everything was read.
pub(crate) fn follow(
    from: OwnedFd,
    mut log: Option<BoundedLog>,
) -> io::Result<(Tail, oneshot::Receiver<()>)> {
    let tail = Tail::default();
    let kept = tail.clone();
    let (done, read_to_end) = oneshot::channel();
    let read = move || {
        let mut source = File::from(from);
        let mut buffer = [0; 4096];
        // A terminal whose other side closed reports EIO: its end of file.
        while let Ok(len @ 1..) = source.read(&mut buffer) {
            kept.push(&buffer[..len]);
            if let Some(open) = &mut log
                && let Err(error) = open.write(&buffer[..len])
            {
                tracing::warn!(path = %open.path.display(), %error, "log closed");
                log = None;
            }
        }
        let _nobody_waits = done.send(());
    };
    std::thread::Builder::new().name("msb-log".into()).stack_size(64 << 10).spawn(read)?;
    Ok((tail, read_to_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tail_keeps_the_end_and_finds_lines() {
        let tail = Tail::default();
        tail.push(&vec![b'x'; TAIL_BYTES]);
        tail.push(b"\nKernel panic - not syncing: oh\r\nlast\n\n");
        assert_eq!(tail.last_line().as_deref(), Some("last"));
        assert_eq!(
            tail.line_with("Kernel panic").as_deref(),
            Some("Kernel panic - not syncing: oh")
        );
        assert!(tail.text().len() <= TAIL_BYTES);
    }

    #[test]
    fn log_is_moved_aside_when_it_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel.log");
        let mut log = BoundedLog::open(path.clone()).unwrap();
        let chunk = vec![b'a'; usize::try_from(MAX_LOG_BYTES).unwrap()];
        for _ in 0..5 {
            log.write(&chunk).unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(path.metadata().unwrap().len(), MAX_LOG_BYTES);
    }
}
