//! One output of a command: from its pipe or terminal to the client, within the client's credit, or
//! to the record of a detached job.

use std::os::fd::OwnedFd;

use microsandbox_protocol::{Kind, StreamId};
use nix::errno::Errno;
use nix::unistd::read;
use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;

use crate::exec::flow::{Drain, OutputCredit};
use crate::fd::{PIPE_BYTES, Widen};
use crate::jobs::JobRecord;
use crate::link::{Outbox, PIECE_MAX};

/// Most bytes a pipe or terminal can hold for an unprivileged process (`/proc/sys/fs/pipe-max-size`).
///
/// What it held when the wait for end of file was over is sent; what a background process writes
/// after that is not waited for.
const PIPE_MAX: usize = 1 << 20;

/// Where output comes from and where it goes.
#[derive(Debug)]
pub(crate) struct Output<'a> {
    pub source: &'a AsyncFd<OwnedFd>,
    pub kind: Kind,
    pub to: Destination<'a>,
}

/// Where output goes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Destination<'a> {
    /// To the client, as fast as it takes it.
    Client { stream: StreamId, credit: &'a OutputCredit, outbox: &'a Outbox },
    /// Into the record of a detached job, which takes all.
    Record(&'a JobRecord),
}

impl Destination<'_> {
    /// Returns once at least one byte may be read.
    async fn ready(self) {
        if let Self::Client { credit, .. } = self {
            credit.available().await;
        }
    }
}

/// What one attempt to read gave.
#[derive(Debug, Clone, Copy)]
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
        let widen = Widen::default();
        loop {
            self.to.ready().await;
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
            let read = self.forward(PIECE_MAX).await;
            if matches!(read, Read::Bytes(PIPE_BYTES..)) {
                widen.filled(self.source);
            }
            match (read, ready) {
                (Read::Bytes(_), _) | (Read::Nothing, None) => {}
                (Read::Nothing, Some(mut ready)) => ready.clear_ready(),
                (Read::End, _) => return,
            }
        }
        let mut left = PIPE_MAX;
        while left > 0 {
            self.to.ready().await;
            match self.forward(left.min(PIECE_MAX)).await {
                Read::Bytes(len) => left -= len,
                Read::Nothing | Read::End => return,
            }
        }
    }

    /// Sends one piece of at most `most` bytes.
    async fn forward(&self, most: usize) -> Read {
        let (stream, credit, outbox) = match self.to {
            Destination::Client { stream, credit, outbox } => (stream, credit, outbox),
            Destination::Record(record) => {
                let mut bytes = [0; RECORDED];
                let taken = taken(read(self.source, &mut bytes));
                if let Read::Bytes(len) = taken {
                    record.write(self.kind, &bytes[..len]);
                }
                // Nobody else has a turn while a job writes and nothing stops it.
                yield_now().await;
                return taken;
            }
        };
        // The other output may have used up the credit since it was waited for.
        let allowed = credit.allowed(most);
        if allowed == 0 {
            return Read::Bytes(0);
        }
        let mut piece = outbox.piece();
        let taken = taken(read(self.source, &mut piece.room()[..allowed]));
        match taken {
            Read::Bytes(len) if len > 0 => {
                credit.spend(len);
                piece.seal(stream, self.kind, len);
                outbox.bulk(piece).await;
            }
            _ => outbox.recycle(piece),
        }
        taken
    }
}

/// One read for a record.
const RECORDED: usize = 16 << 10;

const fn taken(read: Result<usize, Errno>) -> Read {
    match read {
        Ok(len) if len > 0 => Read::Bytes(len),
        Err(Errno::EINTR) => Read::Bytes(0),
        Err(Errno::EAGAIN) => Read::Nothing,
        // EIO: no process has the terminal open any more.
        Ok(_) | Err(_) => Read::End,
    }
}
