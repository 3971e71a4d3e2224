//! Standard input of a command: from the client to its pipe or terminal, within the agent's window.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

use bytes::{Buf, Bytes};
use microsandbox_protocol::{
    Credit, DEFAULT_WINDOW_BYTES, ReceiveWindow, StdinClosed, StreamId, WindowExceeded,
};
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

use crate::fd::write_some;
use crate::link::Outbox;

/// Bytes on their way to a command; never more than the window.
#[derive(Debug)]
pub(crate) struct Input {
    state: RefCell<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    queue: VecDeque<Bytes>,
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
    pub(crate) fn push(&self, bytes: Bytes, end: bool) -> Result<(), WindowExceeded> {
        let mut state = self.state.borrow_mut();
        state.window.receive(bytes.len())?;
        if state.closed || state.ended {
            return Ok(());
        }
        state.ended = end;
        if !bytes.is_empty() {
            state.queue.push_back(bytes);
        }
        self.changed.notify_one();
        Ok(())
    }

    /// Writes what comes until the client ends it or the command takes no more.
    pub(crate) async fn pump(&self, sink: Sink<'_>, stream: StreamId, outbox: &Outbox) {
        let target = match &sink {
            Sink::Pipe(pipe) => pipe,
            Sink::Terminal(master) => master,
        };
        while let Some(bytes) = self.next().await {
            if let Err(errno) = self.write(target, bytes, stream, outbox).await {
                return self.close(errno, stream, outbox);
            }
        }
        if let Sink::Terminal(master) = sink {
            let end = Bytes::from_static(END_OF_TRANSMISSION);
            // A terminal that is gone needs no end.
            let _ = write_some(master, &end).await;
        }
    }

    /// The next bytes to write; `None` after the last.
    async fn next(&self) -> Option<Bytes> {
        loop {
            let ended = {
                let mut state = self.state.borrow_mut();
                if let Some(bytes) = state.queue.pop_front() {
                    return Some(bytes);
                }
                state.ended
            };
            if ended {
                return None;
            }
            self.changed.notified().await;
        }
    }

    async fn write(
        &self,
        target: &AsyncFd<OwnedFd>,
        mut bytes: Bytes,
        stream: StreamId,
        outbox: &Outbox,
    ) -> Result<(), Errno> {
        while !bytes.is_empty() {
            let written = write_some(target, &bytes).await?;
            bytes.advance(written);
            let grant = self.state.borrow_mut().window.consume(written);
            if let Some(bytes) = grant {
                outbox.control(stream, &Credit { bytes });
            }
        }
        Ok(())
    }

    fn close(&self, errno: Errno, stream: StreamId, outbox: &Outbox) {
        let mut state = self.state.borrow_mut();
        state.closed = true;
        state.queue.clear();
        outbox.control(stream, &StdinClosed { errno: errno as i32 });
    }
}
