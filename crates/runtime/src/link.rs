//! Frames over a byte stream: one reader, and a writer whose control frames overtake bulk.

use std::sync::Arc;

use bytes::Buf;
use microsandbox_protocol::{Frame, FrameDecoder, Hold, Kind, Message, Release};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc},
    task::JoinHandle,
};

use crate::{Error, Result};

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub(crate) struct FrameReader<R> {
    input: R,
    decoder: FrameDecoder,
    peer: &'static str,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads frames of `peer`, a name for errors.
    pub(crate) fn new(input: R, peer: &'static str) -> Self {
        Self { input, decoder: FrameDecoder::default(), peer }
    }

    /// The next frame; `None` once the peer has hung up.
    ///
    /// Cancel safe: bytes read so far stay in the decoder.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>> {
        loop {
            let frame = self.decoder.next_frame();
            let frame = frame.map_err(|source| Error::Protocol { peer: self.peer, source })?;
            if frame.is_some() {
                return Ok(frame);
            }
            match self.input.read_buf(self.decoder.buffer()).await {
                Ok(0) => return Ok(None),
                Ok(_) => {}
                // A peer that died with unread data resets the connection: it has hung up.
                Err(source) if source.kind() == std::io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Err(source) => return Err(Error::System { action: "read a link", source }),
            }
        }
    }
}

/// Queues frames for a writer task. Cheap to clone; never waits.
///
/// What may be queued is bounded by credit: bulk bytes are queued only within a stream's window,
/// and control frames only in answer to something.
#[derive(Debug, Clone)]
pub(crate) struct FrameSender {
    control: mpsc::UnboundedSender<Frame>,
    bulk: mpsc::UnboundedSender<Frame>,
    released: Arc<Notify>,
}

impl FrameSender {
    /// Starts to write to `output` on a task that ends when every sender is dropped or the peer has
    /// hung up.
    pub(crate) fn start<W: AsyncWrite + Unpin + Send + 'static>(output: W) -> Self {
        Self::start_watched(output).0
    }

    /// As [`FrameSender::start`], with the task, which ends once everything queued was written and
    /// every sender is dropped.
    pub(crate) fn start_watched<W>(output: W) -> (Self, JoinHandle<()>)
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (control, control_queue) = mpsc::unbounded_channel();
        let (bulk, bulk_queue) = mpsc::unbounded_channel();
        let released = Arc::new(Notify::new());
        let queues = (control_queue, bulk_queue);
        let task = tokio::spawn(write_frames(output, queues, Arc::clone(&released)));
        (Self { control, bulk, released }, task)
    }

    /// Queues a frame. Frames of one stream keep their order among control and among bulk frames;
    /// those that must stay behind bulk are sent with [`FrameSender::send_in_order`].
    pub(crate) fn send(&self, frame: Frame) {
        let bulk = Kind::from_byte(frame.kind).is_some_and(Kind::is_bulk);
        let queue = if bulk { &self.bulk } else { &self.control };
        // A closed queue means the peer is gone; its reader says so to whoever waits.
        let _gone = queue.send(frame);
    }

    /// Asks an agent to send nothing more, and sends it nothing more either, until
    /// [`FrameSender::release`]: when it has answered, nothing is on its way in either direction.
    pub(crate) fn hold(&self) {
        self.send(Hold {}.to_frame(0));
    }

    /// Ends a hold.
    pub(crate) fn release(&self) {
        self.released.notify_one();
    }

    /// Queues a frame behind all bulk frames queued before it.
    pub(crate) fn send_in_order(&self, frame: Frame) {
        let _gone = self.bulk.send(frame);
    }
}

async fn write_frames<W: AsyncWrite + Unpin>(
    mut output: W,
    (mut control, mut bulk): (mpsc::UnboundedReceiver<Frame>, mpsc::UnboundedReceiver<Frame>),
    released: Arc<Notify>,
) {
    loop {
        let frame = tokio::select! {
            biased;
            Some(frame) = control.recv() => frame,
            Some(frame) = bulk.recv() => frame,
            else => return,
        };
        let is_hold = frame.kind == Kind::Hold.byte();
        if write_frame(&mut output, frame).await.is_err() {
            return;
        }
        if is_hold {
            released.notified().await;
            if write_frame(&mut output, Release {}.to_frame(0)).await.is_err() {
                return;
            }
        }
    }
}

async fn write_frame<W: AsyncWrite + Unpin>(output: &mut W, frame: Frame) -> std::io::Result<()> {
    let header = frame.header();
    output.write_all_buf(&mut Buf::chain(&header[..], frame.body)).await
}
