//! Standard input of a command: from the client to its pipe or terminal, within the agent's window.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use microsandbox_protocol::{
    Credit, DEFAULT_WINDOW_BYTES, ReceiveWindow, StdinClosed, StreamId, WindowExceeded,
};
use nix::errno::Errno;
use nix::unistd::write;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::fd::{Widen, write_some, write_with};
use crate::link::Outbox;

/// Bytes on their way to a command; never more than the window.
#[derive(Debug)]
pub(crate) struct Input {
    state: RefCell<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// Copies: the memory of frames is free again for the next ones. Fresh pages for each would cost
    /// an emulated processor several times what copying does.
    queue: VecDeque<u8>,
    window: ReceiveWindow,
    /// The client sends no more.
    ended: bool,
    /// The command takes no more: what still comes is dropped.
    closed: bool,
}

/// Where the bytes go.
#[derive(Debug)]
pub(crate) enum Sink<'a> {
    /// A pipe, closed after the last byte.
    Pipe(AsyncFd<OwnedFd>),
    /// The master of a terminal, which has output too and stays open.
    Terminal(&'a AsyncFd<OwnedFd>),
}

/// End of file as typed on a terminal: `VEOF`, which is control-D unless the command changed it.
const END_OF_TRANSMISSION: &[u8] = b"\x04";

impl Input {
    /// An open input with nothing in it.
    pub(crate) fn new() -> Self {
        let state = State {
            queue: VecDeque::new(),
            window: ReceiveWindow::new(DEFAULT_WINDOW_BYTES),
            ended: false,
            closed: false,
        };
        Self { state: RefCell::new(state), changed: Notify::new() }
    }

    /// Takes what the client sent; `end`: nothing follows.
    ///
    /// # Errors
    /// The client sent more than it was granted.
    pub(crate) fn push(&self, bytes: &[u8], end: bool) -> Result<(), WindowExceeded> {
        let mut state = self.state.borrow_mut();
        state.window.receive(bytes.len())?;
        if state.closed || state.ended {
            return Ok(());
        }
        state.ended = end;
        state.queue.extend(bytes);
        self.changed.notify_one();
        Ok(())
    }

    /// Writes what comes until the client ends it or the command takes no more.
    pub(crate) async fn pump(&self, sink: Sink<'_>, stream: StreamId, outbox: &Outbox) {
        let target = match &sink {
            Sink::Pipe(pipe) => pipe,
            Sink::Terminal(master) => master,
        };
        let widen = Widen::default();
        while self.filled().await {
            match write_with(target, |target| self.write(target, &widen)).await {
                Ok(written) => self.grant(written, stream, outbox),
                Err(errno) => return self.close(errno, stream, outbox),
            }
        }
        if let Sink::Terminal(master) = sink {
            // A terminal that is gone needs no end.
            let _ = write_some(master, END_OF_TRANSMISSION).await;
        }
    }

    /// Returns once there is something to write; false: nothing comes any more.
    async fn filled(&self) -> bool {
        loop {
            {
                let state = self.state.borrow();
                if !state.queue.is_empty() || state.ended {
                    return !state.queue.is_empty();
                }
            }
            self.changed.notified().await;
        }
    }

    /// Writes what is in front; gives how much was taken.
    fn write(&self, target: &OwnedFd, widen: &Widen) -> Result<usize, Errno> {
        let mut state = self.state.borrow_mut();
        let (front, _) = state.queue.as_slices();
        let written = write(target, front)?;
        if written < front.len() {
            widen.filled(target);
        }
        state.queue.drain(..written);
        Ok(written)
    }

    fn grant(&self, written: usize, stream: StreamId, outbox: &Outbox) {
        if let Some(bytes) = self.state.borrow_mut().window.consume(written) {
            outbox.control(stream, &Credit { bytes });
        }
    }

    fn close(&self, errno: Errno, stream: StreamId, outbox: &Outbox) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        state.queue = VecDeque::new();
        outbox.control(stream, &StdinClosed { errno: errno as i32 });
    }
}
