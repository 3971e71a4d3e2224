//! The directory of one sandbox: its paths, and its records written by rename.
//!
//! ```text
//!  sandboxes/<name>/
//!    lock         held while a process owns the sandbox
//!    upper.ext4   the writable disk
//!    run.json     the last run: who, when, with what
//!    exit.json    how the last run ended; absent while it runs
//!    agent.sock   the relay, while it runs
//!    logs/        exec.log (commands), kernel.log (console), runtime.log (supervisor)
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::AsRawFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use chrono::Utc;
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{EndReason, Error, ExitRecord, Result, RunRecord, SandboxLock};

/// Paths and records of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxDir {
    root: PathBuf,
}

impl SandboxDir {
    /// The directory at `root`, which need not exist.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// The lock file.
    pub fn lock_path(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The writable disk.
    pub fn upper_path(&self) -> PathBuf {
        self.root.join("upper.ext4")
    }

    /// The relay's socket.
    pub fn socket_path(&self) -> PathBuf {
        self.root.join("agent.sock")
    }

    /// The folder of all logs.
    pub fn logs_path(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// What commands wrote, older parts in `exec.log.1` and `.2`.
    pub fn exec_log_path(&self) -> PathBuf {
        self.root.join("logs/exec.log")
    }

    /// The guest's console, oldest part in `kernel.log.1`.
    pub fn kernel_log_path(&self) -> PathBuf {
        self.root.join("logs/kernel.log")
    }

    /// The supervisor's and the VMM's own messages.
    pub fn runtime_log_path(&self) -> PathBuf {
        self.root.join("logs/runtime.log")
    }

    /// Makes the directory, mode 0700, and takes its lock.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process holds the sandbox, [`Error::File`] otherwise.
    pub fn create_locked(&self) -> Result<SandboxLock> {
        loop {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
            made.map_err(Error::file("make", &self.root))?;
            match SandboxLock::acquire(&self.lock_path()) {
                // Removed by another process between the two steps: make it again.
                Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => return other,
            }
        }
    }

    /// Takes the lock of a directory that exists.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process holds the sandbox, [`Error::File`] otherwise.
    pub fn lock(&self) -> Result<SandboxLock> {
        SandboxLock::acquire(&self.lock_path())
    }

    /// Takes the lock once its holder lets go of it. Blocks until then.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn lock_when_free(&self) -> Result<SandboxLock> {
        SandboxLock::acquire_when_free(&self.lock_path())
    }

    /// Waits until no process owns the sandbox. Blocks until then.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn wait_until_free(&self) -> Result<()> {
        match self.lock_when_free() {
            // Removed meanwhile: nobody owns it for good.
            Err(_) if !self.root.exists() => Ok(()),
            taken => taken.map(drop),
        }
    }

    /// Ends a supervisor that serves no relay: one that is still booting, or hangs. Blocks until it
    /// has let go of the sandbox; returns at once when there is none.
    ///
    /// # Errors
    /// [`Error::File`] when the records cannot be read.
    pub fn end_supervisor(&self) -> Result<()> {
        if !self.is_held()? {
            return Ok(());
        }
        // The pid is that of the lock's holder as long as the lock is held: asked again below.
        if let Some(run) = self.run_record()?
            && self.is_held()?
            && let Ok(pid) = i32::try_from(run.pid)
        {
            tracing::info!(pid, "ending a supervisor without a relay");
            // One that is gone already has let go.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        self.wait_until_free()
    }

    /// Whether a process owns the sandbox now. Changes nothing.
    ///
    /// # Errors
    /// [`Error::File`] when the lock cannot be looked at.
    pub fn is_held(&self) -> Result<bool> {
        SandboxLock::is_held(&self.lock_path())
    }

    /// Removes the directory and all in it; one that is gone already is fine.
    ///
    /// # Errors
    /// [`Error::File`] naming the directory; what could be removed is gone then.
    pub fn remove(&self, _held: &SandboxLock) -> Result<()> {
        self.remove_all()
    }

    pub(crate) fn remove_all(&self) -> Result<()> {
        remove_tree_if_there(&self.root)
    }

    pub(crate) fn remove_all_but_records(&self) -> Result<()> {
        remove_if_there(&self.upper_path())?;
        remove_tree_if_there(&self.root.join(LOGS))
    }

    /// The record of the last run, if there was one.
    ///
    /// # Errors
    /// [`Error::File`] when it is there and cannot be read.
    pub fn run_record(&self) -> Result<Option<RunRecord>> {
        read_json(&self.root.join(RUN))
    }

    /// How the last run ended, if it has.
    ///
    /// # Errors
    /// [`Error::File`] when it is there and cannot be read.
    pub fn exit_record(&self) -> Result<Option<ExitRecord>> {
        read_json(&self.root.join(EXIT))
    }

    /// The last run and its end, read by who holds the sandbox: a run without an exit record was
    /// ended by the death of its supervisor.
    ///
    /// # Errors
    /// [`Error::File`] when a record is there and cannot be read.
    pub fn last_end(&self, _held: &SandboxLock) -> Result<Option<(RunRecord, ExitRecord)>> {
        let Some(run) = self.run_record()? else { return Ok(None) };
        let exit = self.exit_record()?.filter(|exit| exit.run_id == run.run_id);
        let exit = exit.unwrap_or_else(|| ExitRecord {
            run_id: run.run_id.clone(),
            reason: EndReason::SupervisorKilled,
            at: Utc::now(),
            forced: true,
            vmm_exit: None,
            console_tail: String::new(),
        });
        Ok(Some((run, exit)))
    }

    /// Finds space for the records of a run, before anything is started that may fill the disk.
    pub(crate) fn reserve_records(&self) -> Result<()> {
        reserve(&self.root, RUN, RUN_BYTES)?;
        reserve(&self.root, EXIT, EXIT_BYTES)
    }

    pub(crate) fn release_reserve(&self) -> Result<()> {
        remove_if_there(&temporary(&self.root, RUN))?;
        remove_if_there(&temporary(&self.root, EXIT))
    }

    pub(crate) fn write_run_record(&self, record: &RunRecord) -> Result<()> {
        write_json(&self.root, RUN, record)?;
        // For the next one, as far as there still is space.
        let _takes_its_chance = reserve(&self.root, RUN, RUN_BYTES);
        Ok(())
    }

    pub(crate) fn write_exit_record(&self, record: &ExitRecord) -> Result<()> {
        write_json(&self.root, EXIT, record)
    }

    pub(crate) fn remove_exit_record(&self) -> Result<()> {
        remove_if_there(&self.root.join(EXIT))
    }

    pub(crate) fn remove_socket(&self) -> Result<()> {
        remove_if_there(&self.socket_path())
    }

    /// Opens `logs/runtime.log` for appending, emptying it first when it has grown large.
    pub(crate) fn open_runtime_log(&self) -> Result<File> {
        let logs = self.root.join(LOGS);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&logs)
            .map_err(Error::file("make", &logs))?;
        let path = self.runtime_log_path();
        let large = path.metadata().is_ok_and(|meta| meta.len() > MAX_RUNTIME_LOG_BYTES);
        let open = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        let file = open.map_err(Error::file("open", &path))?;
        if large {
            file.set_len(0).map_err(Error::file("empty", &path))?;
        }
        Ok(file)
    }

    /// The directory, opened, and a path to the socket through it that any directory name keeps
    /// below the 108 bytes of `sun_path` (`unix(7)`).
    pub(crate) fn short_socket_path(&self) -> io::Result<(File, PathBuf)> {
        let dir = File::open(&self.root)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/agent.sock", dir.as_raw_fd()));
        Ok((dir, path))
    }
}

const LOGS: &str = "logs";
const RUN: &str = "run.json";
const EXIT: &str = "exit.json";

/// Space kept for a run record, a few hundred bytes.
const RUN_BYTES: i64 = 4 << 10;

/// Space kept for an exit record: 8 KiB of console, of which JSON may write each byte as six.
const EXIT_BYTES: i64 = 64 << 10;

/// The supervisor logs little; a sandbox restarted for months must still not fill the disk.
const MAX_RUNTIME_LOG_BYTES: u64 = 1 << 20;

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::file("read", path)(source)),
    };
    let value = serde_json::from_slice(&bytes);
    value.map(Some).map_err(|source| Error::file("read", path)(source.into()))
}

/// Writes to a temporary file, into the space that [`reserve`] has found for it, and renames that.
fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<()> {
    let (path, temporary) = (dir.join(name), temporary(dir, name));
    let write = || {
        let bytes = serde_json::to_vec_pretty(value)?;
        let mut file = open_temporary(&temporary)?;
        file.write_all(&bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_data()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(Error::file("write", &path))
}

/// Finds space for the next version of a record, so that it can be written on a disk that is full.
fn reserve(dir: &Path, name: &str, bytes: i64) -> Result<()> {
    let path = temporary(dir, name);
    let reserve = || {
        let file = open_temporary(&path)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // A file system that cannot promise space, such as NFS.
            Err(Errno::EOPNOTSUPP) => Ok(()),
            other => other.map_err(io::Error::from),
        }
    };
    reserve().map_err(Error::file("find space for", path.clone()))
}

fn temporary(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!(".{name}.new"))
}

fn open_temporary(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn remove_tree_if_there(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(source))
        }
        _ => Ok(()),
    }
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(source))
        }
        _ => Ok(()),
    }
}
