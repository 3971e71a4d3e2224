//! The link to the host while commands run: frames in, frames out, bounded memory.
//!
//! ```text
//!  control frames ──▶ one buffer ─────────────┐ first
//!  bulk pieces ─────▶ queue, one per producer ┴▶ port
//! ```
//!
//! Control frames overtake bulk pieces that wait, never one that is being written. A producer hands
//! over one piece at a time and goes on once it is being written, so a control frame it sends after
//! that follows its own output, and a stalled host holds one piece per producer.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use microsandbox_protocol::{
    Frame, FrameDecoder, HEADER_LEN, Held, Kind, MAX_BULK_LEN, Message, StreamId,
};
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use crate::error::Error;
use crate::fd::write_some;
use crate::sys;

/// Frames from the host.
#[derive(Debug)]
pub(crate) struct Inbox {
    port: Rc<AsyncFd<OwnedFd>>,
    decoder: FrameDecoder,
}

impl Inbox {
    /// Goes on where the boot left off: `decoder` may hold bytes.
    pub(crate) const fn new(port: Rc<AsyncFd<OwnedFd>>, decoder: FrameDecoder) -> Self {
        Self { port, decoder }
    }

    /// The next frame; `None` when the host has gone.
    ///
    /// # Errors
    /// [`Error::ReadPort`], or [`Error::Protocol`] when the bytes are no frames.
    ///
    /// # Cancel safety
    /// Nothing received is lost.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, Error> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(Some(frame));
            }
            let mut guard = self.port.readable().await.map_err(Error::ReadPort)?;
            match sys::io::read_into(&*self.port, self.decoder.buffer()) {
                Ok(0) | Err(Errno::ECONNRESET) => return Ok(None),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(errno) => return Err(Error::ReadPort(errno.into())),
            }
        }
    }
}

/// Frames to the host: cheap to clone, one task writes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outbox(Rc<Queues>);

#[derive(Debug, Default)]
struct Queues {
    control: RefCell<Vec<u8>>,
    bulk: RefCell<VecDeque<(Piece, oneshot::Sender<()>)>>,
    spare: RefCell<Vec<Piece>>,
    writing: Cell<bool>,
    hold: Cell<Hold>,
    /// Something waits to be written.
    filled: Notify,
    /// Control frames were taken, or nothing waits any more.
    emptied: Notify,
}

/// Whether anything is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    No,
    /// Not after the frame that is being written and one that says so.
    Asked,
    /// Not until the release.
    Told,
}

/// Control bytes above which no more work is taken on until the host has read some.
const CONTROL_MAX: usize = 256 << 10;

/// Pieces kept for reuse: fresh ones are new pages to the kernel each time.
const SPARE_MAX: usize = 4;

impl Outbox {
    /// Queues a control frame.
    pub(crate) fn control<M: Message>(&self, stream: StreamId, message: &M) {
        let frame = message.to_frame(stream);
        let mut control = self.0.control.borrow_mut();
        control.extend_from_slice(&frame.header());
        control.extend_from_slice(&frame.body);
        self.0.filled.notify_one();
    }

    /// Queues a control frame behind the pieces that wait, for one that ends a stream whose producer
    /// was stopped in between. It is no longer than a piece.
    pub(crate) fn control_in_order<M: Message>(&self, stream: StreamId, message: &M) {
        let frame = message.to_frame(stream);
        let mut piece = self.piece();
        piece.copy(&frame);
        let (taken, _nobody_waits) = oneshot::channel();
        self.0.bulk.borrow_mut().push_back((piece, taken));
        self.0.filled.notify_one();
    }

    /// An empty piece to fill and send.
    pub(crate) fn piece(&self) -> Piece {
        self.0.spare.borrow_mut().pop().unwrap_or_default()
    }

    /// Queues a piece; returns once it is being written, in the order of calls.
    ///
    /// # Cancel safety
    /// A piece that was queued is written.
    pub(crate) async fn bulk(&self, piece: Piece) {
        let (taken, is_taken) = oneshot::channel();
        self.0.bulk.borrow_mut().push_back((piece, taken));
        self.0.filled.notify_one();
        // The writer drops the sender only when the host has gone; nobody waits for bytes then.
        let _ = is_taken.await;
    }

    /// Writes nothing more, after a last frame that says so.
    pub(crate) fn hold(&self) {
        self.0.hold.set(Hold::Asked);
        self.0.filled.notify_one();
    }

    /// Goes on after a hold.
    pub(crate) fn release(&self) {
        self.0.hold.set(Hold::No);
        self.0.filled.notify_one();
    }

    /// Drops what waits to be written, and tells nobody: those who wait for it are gone.
    pub(crate) fn discard(&self) {
        self.0.control.borrow_mut().clear();
        self.0.bulk.borrow_mut().clear();
        self.0.emptied.notify_waiters();
    }

    /// Returns when the host keeps up with control frames: more work may be taken on.
    pub(crate) async fn ready(&self) {
        self.until(|queues| queues.control.borrow().len() < CONTROL_MAX).await;
    }

    /// Returns when the port has taken everything queued so far.
    pub(crate) async fn flushed(&self) {
        self.until(|queues| {
            queues.control.borrow().is_empty()
                && queues.bulk.borrow().is_empty()
                && !queues.writing.get()
        })
        .await;
    }

    async fn until(&self, condition: impl Fn(&Queues) -> bool) {
        loop {
            let emptied = self.0.emptied.notified();
            if condition(&self.0) {
                return;
            }
            emptied.await;
        }
    }

    /// Writes whatever is queued, for ever.
    ///
    /// What a host that has gone does not take is dropped, so that nobody waits for it; that it has
    /// gone is seen where frames are read.
    pub(crate) async fn deliver(&self, port: &AsyncFd<OwnedFd>) {
        let Err(_gone) = self.write(port).await;
        loop {
            self.0.control.borrow_mut().clear();
            self.0.bulk.borrow_mut().clear();
            self.0.writing.set(false);
            self.0.emptied.notify_waiters();
            self.0.filled.notified().await;
        }
    }

    async fn write(&self, port: &AsyncFd<OwnedFd>) -> Result<Infallible, Errno> {
        let mut control = Vec::new();
        loop {
            if self.0.hold.get() != Hold::No {
                self.stand_still(port).await?;
                continue;
            }
            std::mem::swap(&mut control, &mut *self.0.control.borrow_mut());
            let next = if control.is_empty() { self.0.bulk.borrow_mut().pop_front() } else { None };
            self.0.writing.set(true);
            if !control.is_empty() {
                self.0.emptied.notify_waiters();
                write_all(port, &control).await?;
                control.clear();
            } else if let Some((piece, taken)) = next {
                // A producer that was cancelled does not listen.
                let _ = taken.send(());
                write_all(port, piece.wire()).await?;
                self.recycle(piece);
            } else {
                self.0.writing.set(false);
                self.0.emptied.notify_waiters();
                self.0.filled.notified().await;
            }
        }
    }

    /// Says once that nothing more comes; returns when something about the hold may have changed.
    async fn stand_still(&self, port: &AsyncFd<OwnedFd>) -> Result<(), Errno> {
        self.0.writing.set(false);
        if self.0.hold.replace(Hold::Told) == Hold::Asked {
            let held = Held {}.to_frame(0);
            return write_all(port, &[&held.header()[..], &held.body].concat()).await;
        }
        self.0.filled.notified().await;
        Ok(())
    }

    /// Takes back a piece that is not needed.
    pub(crate) fn recycle(&self, piece: Piece) {
        let mut spare = self.0.spare.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(piece);
        }
    }
}

/// Bulk bytes with room for their frame header in front, so that one write takes both.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Box<[u8]>,
    len: usize,
}

/// Most bytes of one piece. With its header it is a whole number of what the port takes at once,
/// 32 KiB (`port_fops_write`): ten bytes more would cost a system call and a turn of the device.
pub(crate) const PIECE_MAX: usize = MAX_BULK_LEN - HEADER_LEN;

impl Default for Piece {
    fn default() -> Self {
        Self { bytes: vec![0; HEADER_LEN + PIECE_MAX].into_boxed_slice(), len: 0 }
    }
}

impl Piece {
    /// Where the bytes go: at most [`PIECE_MAX`].
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[HEADER_LEN..]
    }

    /// Makes a frame of the first `len` bytes of the room.
    pub(crate) fn seal(&mut self, stream: StreamId, kind: Kind, len: usize) {
        let header = Frame::bulk_header(stream, kind, len);
        self.bytes[..HEADER_LEN].copy_from_slice(&header);
        self.len = HEADER_LEN + len;
    }

    /// Becomes a copy of `frame`.
    fn copy(&mut self, frame: &Frame) {
        self.bytes[..HEADER_LEN].copy_from_slice(&frame.header());
        self.room()[..frame.body.len()].copy_from_slice(&frame.body);
        self.len = HEADER_LEN + frame.body.len();
    }

    fn wire(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

async fn write_all(port: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        bytes = &bytes[write_some(port, bytes).await?..];
    }
    Ok(())
}
