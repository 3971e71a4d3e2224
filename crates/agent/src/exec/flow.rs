//! Flow of one stream: how much output the client takes, and when output ends.

use std::cell::{Cell, RefCell};
use std::future;
use std::time::Duration;

use microsandbox_protocol::SendWindow;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// Output bytes the client takes, shared by the command's outputs.
#[derive(Debug)]
pub(crate) struct OutputCredit {
    window: RefCell<SendWindow>,
    granted: Notify,
}

impl OutputCredit {
    /// Credit the client opened the stream with.
    pub(crate) fn new(initial: u32) -> Self {
        Self { window: RefCell::new(SendWindow::new(initial)), granted: Notify::new() }
    }

    /// The client takes `bytes` more.
    pub(crate) fn grant(&self, bytes: u32) {
        self.window.borrow_mut().grant(bytes);
        self.granted.notify_waiters();
    }

    /// Returns once at least one byte may be sent.
    pub(crate) async fn available(&self) {
        loop {
            let granted = self.granted.notified();
            if self.allowed(1) > 0 {
                return;
            }
            granted.await;
        }
    }

    /// Bytes that may be sent now, at most `wanted`.
    pub(crate) fn allowed(&self, wanted: usize) -> usize {
        self.window.borrow().allowed(wanted)
    }

    /// Counts bytes as sent; they were allowed since the caller last yielded.
    pub(crate) fn spend(&self, bytes: usize) {
        self.window.borrow_mut().spend(bytes).expect("the caller asked what is allowed");
    }
}

/// Time for the last output to arrive after the command's first process has ended.
///
/// Long enough for a helper it left to finish its line, short enough that nobody notices the wait
/// for a background process that keeps the pipe open.
const DRAIN: Duration = Duration::from_millis(50);

/// Tells the outputs when to stop waiting for end of file.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    deadline: Cell<Option<Instant>>,
    begun: Notify,
}

impl Drain {
    /// The first process has ended: outputs may wait for a moment more.
    pub(crate) fn begin(&self) {
        self.deadline.set(Some(Instant::now() + DRAIN));
        self.begun.notify_waiters();
    }

    /// Returns when that moment has begun.
    pub(crate) async fn begun(&self) {
        self.until().await;
    }

    /// Returns when that moment is over.
    pub(crate) async fn over(&self) {
        sleep_until(self.until().await).await;
    }

    async fn until(&self) -> Instant {
        loop {
            let begun = self.begun.notified();
            match self.deadline.get() {
                Some(deadline) => return deadline,
                None => begun.await,
            }
        }
    }
}

/// When a command's time is up, counted from the making of its process.
#[derive(Debug)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    /// `timeout` from now; a time beyond all clocks is no timeout.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// Returns at that moment; never without one.
    pub(crate) async fn passed(&self) {
        match self.0 {
            Some(deadline) => sleep_until(deadline).await,
            None => future::pending().await,
        }
    }
}
