//! Waiting for a sandbox's logs to grow, or for its end, by the kernel's word and not by looking.

use std::os::fd::OwnedFd;

use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::{Errno, read},
};
use tokio::io::unix::AsyncFd;

use crate::{Error, Result, SandboxDir, sys::watch_readable};

/// Wakes whoever follows the logs of a sandbox. Changes nothing.
#[derive(Debug)]
pub struct LogWatch {
    events: AsyncFd<OwnedFd>,
    dir: SandboxDir,
}

impl LogWatch {
    /// Watches from now on.
    ///
    /// # Errors
    /// [`Error::File`] naming what cannot be watched: a sandbox that never ran has no logs.
    pub fn new(dir: &SandboxDir) -> Result<Self> {
        let (root, logs) = (dir.path(), dir.logs_path());
        let failed = |errno: Errno| Error::file("watch", &logs)(errno.into());
        let events = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(failed)?;
        let grown = WatchFlags::MODIFY | WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO;
        inotify::add_watch(&events, &logs, grown | WatchFlags::CREATE | WatchFlags::DELETE_SELF)
            .map_err(failed)?;
        // The exit record comes by rename.
        let ended = WatchFlags::MOVED_TO | WatchFlags::DELETE_SELF;
        inotify::add_watch(&events, root, ended)
            .map_err(|errno| Error::file("watch", root)(errno.into()))?;
        let events = watch_readable(events).map_err(Error::file("watch", &logs))?;
        Ok(Self { events, dir: dir.clone() })
    }

    /// Whether the run is over: what is in the logs by now is all of it.
    ///
    /// # Errors
    /// [`Error::File`] when the records cannot be looked at.
    pub fn has_ended(&self) -> Result<bool> {
        // The record is there before the lock is free, and not there when a supervisor was killed.
        Ok(self.dir.exit_record()?.is_some() || !self.dir.is_held()?)
    }

    /// Returns when something may have changed.
    ///
    /// # Errors
    /// [`Error::System`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn changed(&self) -> Result<()> {
        let failed = Error::system("wait for the logs to grow");
        loop {
            let mut ready = match self.events.readable().await {
                Ok(ready) => ready,
                Err(error) => return Err(failed(error)),
            };
            let mut some = false;
            let mut events = [0; 4096];
            loop {
                // What has happened does not matter: the files are looked at.
                match read(&self.events, &mut events) {
                    Ok(_) => some = true,
                    Err(Errno::INTR) => {}
                    Err(Errno::AGAIN) => break,
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
            ready.clear_ready();
            if some {
                return Ok(());
            }
        }
    }
}
