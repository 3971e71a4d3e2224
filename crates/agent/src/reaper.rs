//! The one place that waits for children: as PID 1 the agent inherits every orphan of the guest.
//!
//! `SIGCHLD` is blocked and read from a descriptor. A child is registered in the same turn of the
//! single thread that started it, so its end cannot be missed however fast it comes.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use libc::pid_t;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use crate::sys::io::watch;
use crate::sys::process::{Ended, reap};

/// Collects ended children and tells whoever registered them.
#[derive(Debug)]
pub(crate) struct Reaper {
    signals: AsyncFd<OwnedFd>,
    waiting: RefCell<HashMap<pid_t, oneshot::Sender<Ended>>>,
    childless: Cell<bool>,
    reaped: Notify,
}

impl Reaper {
    /// A reaper for this process. `SIGCHLD` must be blocked already.
    ///
    /// # Errors
    /// What the kernel said of the signal descriptor.
    pub(crate) fn new() -> io::Result<Self> {
        let signals = SignalFd::with_flags(
            &SigSet::from(Signal::SIGCHLD),
            SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC,
        )?;
        Ok(Self {
            signals: watch(signals.into())?,
            waiting: RefCell::default(),
            childless: Cell::new(true),
            reaped: Notify::new(),
        })
    }

    /// Receives the end of the child `pid`, which was started since the caller last yielded.
    pub(crate) fn register(&self, pid: pid_t) -> oneshot::Receiver<Ended> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(pid, sender);
        self.childless.set(false);
        receiver
    }

    /// Reaps children for ever; calls `after` when some have ended.
    ///
    /// # Errors
    /// When the signal descriptor fails, which leaves the agent blind.
    pub(crate) async fn run(&self, after: impl Fn()) -> io::Result<()> {
        loop {
            let mut guard = self.signals.readable().await?;
            // What it tells does not matter, `wait4` knows more; at most one is pending at a time.
            let _ = read(&self.signals, &mut [0; size_of::<siginfo>()]);
            guard.clear_ready();
            if self.reap_all() {
                after();
                self.reaped.notify_waiters();
            }
        }
    }

    /// Returns once this process has no child left.
    pub(crate) async fn childless(&self) {
        loop {
            let reaped = self.reaped.notified();
            if self.childless.get() || self.reap_all() && self.childless.get() {
                return;
            }
            reaped.await;
        }
    }

    fn reap_all(&self) -> bool {
        let mut some = false;
        loop {
            match reap() {
                Ok(Some(ended)) => {
                    some = true;
                    let waiting = self.waiting.borrow_mut().remove(&ended.pid);
                    // An orphan, or a command whose client has lost interest, needs no more.
                    let _ = waiting.map(|sender| sender.send(ended));
                }
                Ok(None) => {
                    self.childless.set(false);
                    return some;
                }
                // ECHILD: there is none at all.
                Err(Errno::EINTR) => {}
                Err(_) => {
                    self.childless.set(true);
                    return some;
                }
            }
        }
    }
}
