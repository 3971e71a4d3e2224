//! One output of a command: from its pipe or terminal to the client, within the client's credit.

use std::os::fd::OwnedFd;

use microsandbox_protocol::{Kind, MAX_BULK_LEN, StreamId};
use nix::errno::Errno;
use nix::unistd::read;
use tokio::io::unix::AsyncFd;

use crate::exec::flow::{Drain, OutputCredit};
use crate::link::Outbox;

/// Most bytes a pipe or terminal can hold for an unprivileged process (`/proc/sys/fs/pipe-max-size`).
///
/// What it held when the wait for end of file was over is sent; what a background process writes
/// after that is not waited for.
const PIPE_MAX: usize = 1 << 20;

/// Where output comes from and where it goes.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub source: &'a AsyncFd<OwnedFd>,
    pub stream: StreamId,
    pub kind: Kind,
    pub credit: &'a OutputCredit,
    pub outbox: &'a Outbox,
}

/// What one attempt to read gave.
enum Read {
    Bytes(usize),
    /// Nothing is there now.
    Nothing,
    End,
}

impl Output<'_> {
    /// Sends output until its end, or until `drain` is over and nothing is left.
    pub(crate) async fn pump(self, drain: &Drain) {
        let mut draining = false;
        loop {
            self.credit.available().await;
            let ready = tokio::select! {
                biased;
                () = drain.over() => break,
                // As a rule this is the end: looking is faster than being told.
                () = drain.begun(), if !draining => {
                    draining = true;
                    None
                }
                ready = self.source.readable() => match ready {
                    Ok(ready) => Some(ready),
                    Err(_) => return,
                },
            };
            match (self.forward(MAX_BULK_LEN).await, ready) {
                (Read::Bytes(_), _) | (Read::Nothing, None) => {}
                (Read::Nothing, Some(mut ready)) => ready.clear_ready(),
                (Read::End, _) => return,
            }
        }
        let mut left = PIPE_MAX;
        while left > 0 {
            self.credit.available().await;
            match self.forward(left.min(MAX_BULK_LEN)).await {
                Read::Bytes(len) => left -= len,
                Read::Nothing | Read::End => return,
            }
        }
    }

    /// Sends one piece of at most `most` bytes.
    async fn forward(&self, most: usize) -> Read {
        // The other output may have used up the credit since it was waited for.
        let allowed = self.credit.allowed(most);
        if allowed == 0 {
            return Read::Bytes(0);
        }
        let mut piece = self.outbox.piece();
        let unused = match read(self.source, &mut piece.room()[..allowed]) {
            Ok(len) if len > 0 => {
                self.credit.spend(len);
                piece.seal(self.stream, self.kind, len);
                self.outbox.bulk(piece).await;
                return Read::Bytes(len);
            }
            Err(Errno::EINTR) => Read::Bytes(0),
            Err(Errno::EAGAIN) => Read::Nothing,
            // EIO: no process has the terminal open any more.
            Ok(_) | Err(_) => Read::End,
        };
        self.outbox.recycle(piece);
        unused
    }
}
