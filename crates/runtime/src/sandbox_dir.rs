//! The directory of one sandbox: its paths, and its records written by rename.
//!
//! ```text
//!  sandboxes/<name>/
//!    lock         held while a process owns the sandbox
//!    upper.ext4   the writable disk
//!    run.json     the last run: who, when, with what
//!    exit.json    how the last run ended; absent while it runs
//!    agent.sock   the relay, while it runs
//!    saved-*/     the running machine, saved for a client that takes it away
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
    sync::atomic::{AtomicU64, Ordering},
};

use chrono::{DateTime, Utc};
use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, fallocate},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    EndReason, Error, ExitRecord, LockMark, Result, RunRecord, SandboxLock, dir_watch::DirWatch,
    program::Role,
};

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

    /// A writable disk that comes with a template, before it takes the place of the fresh one.
    pub(crate) fn template_upper_path(&self) -> PathBuf {
        self.root.join("upper.template")
    }

    /// Puts the writable disk that came with a template in the place of the fresh one, until the guard
    /// is dropped or told to keep it.
    pub(crate) fn use_template_upper(&self) -> Result<TemplateUpper> {
        let fresh = self.root.join("upper.fresh");
        let moved = |from: &Path, to: &Path| {
            fs::rename(from, to).map_err(Error::file("put a disk in place of", to))
        };
        moved(&self.upper_path(), &fresh)?;
        let guard = TemplateUpper { upper: self.upper_path(), fresh, keep: false };
        moved(&self.template_upper_path(), &guard.upper)?;
        Ok(guard)
    }

    /// The folder that the running machine is saved into; `None` for what can be no folder's name.
    pub fn saved_path(&self, name: &str) -> Option<PathBuf> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_name = (1..=MAX_SAVED_NAME).contains(&name.len()) && name.bytes().all(legal);
        is_name.then(|| self.root.join(format!("{SAVED}{name}")))
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

    /// Waits until no process owns the sandbox. Changes nothing; blocks until then.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn wait_until_free(&self) -> Result<()> {
        SandboxLock::wait_until_free(&self.lock_path())
    }

    /// Returns when something may have changed in the directory, at once when there is none. Blocks
    /// until then.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be watched.
    pub fn wait_for_change(&self) -> Result<()> {
        match DirWatch::new(&self.root) {
            Ok(watch) => watch.wait(),
            Err(_) if !self.root.exists() => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes a lock that was held before, once its holder lets go of it; `None` when somebody has
    /// removed the sandbox. Blocks until then.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn lock_again_when_free(&self, mark: &LockMark) -> Result<Option<SandboxLock>> {
        mark.acquire_when_free(&self.lock_path())
    }

    /// Ends a supervisor that serves no relay: one that is still booting, or hangs. Blocks until it
    /// has let go of the sandbox; returns at once when there is none.
    ///
    /// A command that is about to start a supervisor holds the sandbox, too: that one's is waited for.
    ///
    /// # Errors
    /// [`Error::File`] when the records cannot be read, or the directory cannot be watched.
    pub fn end_supervisor(&self) -> Result<()> {
        while self.is_held()? {
            if let Some(supervisor) = self.supervisor()? {
                tracing::info!(pid = supervisor.as_raw(), "ending a supervisor without a relay");
                // One that is gone already has let go.
                let _gone = kill(supervisor, Signal::SIGTERM);
                return self.wait_until_free();
            }
            self.wait_for_change()?;
        }
        Ok(())
    }

    /// Whether a supervisor is at a run that is on record. One that was only just launched is not yet.
    ///
    /// # Errors
    /// [`Error::File`] when the records cannot be read.
    pub fn has_supervisor(&self) -> Result<bool> {
        Ok(self.supervisor()?.is_some())
    }

    /// The supervisor of the run that is on record, unless that is over. Records outlive their runs and
    /// process ids come again: it must also call itself what a supervisor is called.
    fn supervisor(&self) -> Result<Option<Pid>> {
        let Some(run) = self.run_record()? else { return Ok(None) };
        if self.exit_record()?.is_some_and(|exit| exit.run_id == run.run_id) {
            return Ok(None);
        }
        let command_line = fs::read(format!("/proc/{}/cmdline", run.pid)).unwrap_or_default();
        let mut words = command_line.split(|byte| *byte == 0);
        let is_supervisor = words.next() == Some(Role::Supervisor.argv0().as_bytes());
        let pid = i32::try_from(run.pid).ok().filter(|_| is_supervisor);
        Ok(pid.map(Pid::from_raw))
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
        // Out of the way first: whoever looks at the name from then on finds nothing, and makes a
        // directory of its own instead of putting its lock into one that is being emptied.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let gone = self.root.with_file_name(format!("{GONE}{}-{number}", std::process::id()));
        match fs::rename(&self.root, &gone) {
            Ok(()) => remove_tree_if_there(&gone),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(Error::file("remove", &self.root)(source)),
        }
    }

    /// As [`SandboxDir::remove`], by a supervisor, which is not let to rename what lies beside it:
    /// what another process puts there meanwhile keeps the directory, until the next command clears it.
    pub(crate) fn remove_all(&self) -> Result<()> {
        remove_tree_if_there(&self.root)
    }

    /// Removes what removals that were killed have left in a folder of sandboxes.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn finish_removals(folder: &Path) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::file("read", folder)(source)),
        };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
                remove_tree_if_there(&entry.path())?;
            }
        }
        Ok(())
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

    /// The last run and its end; `None` where there was no run, and while it runs. Changes nothing.
    ///
    /// A run that nobody goes on with and that has no exit record was ended by the death of its
    /// supervisor: that is told as an end, too.
    ///
    /// # Errors
    /// [`Error::File`] when a record is there and cannot be read.
    pub fn last_end(&self) -> Result<Option<(RunRecord, ExitRecord)>> {
        self.last_end_where(|| self.is_held())
    }

    /// As [`SandboxDir::last_end`], read by who holds the sandbox without running it.
    ///
    /// # Errors
    /// As [`SandboxDir::last_end`].
    pub fn last_end_held(&self, _held: &SandboxLock) -> Result<Option<(RunRecord, ExitRecord)>> {
        self.last_end_where(|| Ok(false))
    }

    fn last_end_where(
        &self,
        runs: impl Fn() -> Result<bool>,
    ) -> Result<Option<(RunRecord, ExitRecord)>> {
        loop {
            let Some(run) = self.run_record()? else { return Ok(None) };
            // Asked before the record is looked for: that is written before the lock is freed.
            let runs = runs()?;
            let exit = self.exit_record()?.filter(|exit| exit.run_id == run.run_id);
            if exit.is_none() && runs {
                return Ok(None);
            }
            // The next run writes its own record first and then removes this one's end.
            if self.run_record()?.is_none_or(|now| now.run_id != run.run_id) {
                continue;
            }
            let exit = exit.unwrap_or_else(|| self.killed_supervisor(&run));
            return Ok(Some((run, exit)));
        }
    }

    /// The end that nobody could write down. The supervisor's last sign of life says when: a file it
    /// wrote.
    fn killed_supervisor(&self, run: &RunRecord) -> ExitRecord {
        let wrote = [self.root.join(RUN), self.kernel_log_path(), self.exec_log_path()];
        let times = wrote.iter().filter_map(|path| path.metadata().ok()?.modified().ok());
        ExitRecord {
            run_id: run.run_id.clone(),
            reason: EndReason::SupervisorKilled,
            at: times.max().map_or_else(Utc::now, DateTime::from),
            forced: true,
            vmm_exit: None,
            console_tail: String::new(),
        }
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

    /// Removes saved machines whose client and supervisor have both died.
    pub(crate) fn remove_saved(&self) -> Result<()> {
        let list = fs::read_dir(&self.root).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        for entry in list.map_err(Error::file("list", &self.root))? {
            if entry.file_name().as_encoded_bytes().starts_with(SAVED.as_bytes()) {
                remove_tree_if_there(&entry.path())?;
            }
        }
        Ok(())
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

/// What directories of removed sandboxes are called until they are gone. No sandbox is called so.
const GONE: &str = ".gone-";

/// What the names of saved machines begin with, and how long the rest of them is.
const SAVED: &str = "saved-";
const MAX_SAVED_NAME: usize = 64;

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

/// Puts the fresh disk back, unless the other one is kept.
#[derive(Debug)]
#[must_use]
pub(crate) struct TemplateUpper {
    upper: PathBuf,
    fresh: PathBuf,
    keep: bool,
}

impl TemplateUpper {
    /// The template's disk is the sandbox's from now on.
    pub(crate) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for TemplateUpper {
    fn drop(&mut self) {
        let done = match self.keep {
            true => fs::remove_file(&self.fresh),
            false => fs::rename(&self.fresh, &self.upper),
        };
        if let Err(error) = done {
            tracing::warn!(%error, path = %self.fresh.display(), "a disk was left behind");
        }
    }
}
