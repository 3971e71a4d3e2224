//! Waiting for something to happen in a sandbox's directory: a record written, a lock let go of.

use std::{os::fd::OwnedFd, path::Path};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::{Errno, read},
};

use crate::{Error, Result};

/// Time after which to look without an event. The kernel tells that a file was closed right before it
/// frees the lock that was on it, so a look at that event may come too early.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// Blocks until a directory may have changed, from when it was made on.
#[derive(Debug)]
pub(crate) struct DirWatch {
    events: OwnedFd,
}

impl DirWatch {
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let failed = |errno: Errno| Error::file("watch", path)(errno.into());
        let flags = CreateFlags::CLOEXEC | CreateFlags::NONBLOCK;
        let events = inotify::init(flags).map_err(failed)?;
        // Records come by rename. Whoever lets go of the lock closes a file it could write to.
        let changes = WatchFlags::MOVED_TO | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE_SELF;
        inotify::add_watch(&events, path, changes).map_err(failed)?;
        Ok(Self { events })
    }

    pub(crate) fn wait(&self) -> Result<()> {
        let woken = poll(&mut [PollFd::new(&self.events, PollFlags::IN)], Some(&LOOK_AGAIN));
        match woken {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::system("wait for a change of a sandbox")(errno.into()));
            }
        }
        // What has happened does not matter: the files are looked at.
        let mut events = [0; 4096];
        while read(&self.events, &mut events).is_ok() {}
        Ok(())
    }
}
