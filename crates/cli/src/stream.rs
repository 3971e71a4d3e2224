//! A command's streams on msb's own: output as it comes, input on request, signals passed on.
//!
//! ```text
//!  command ──ExecEvent──▶ pending ──▶ stdout / stderr    one piece at a time: a reader that stops
//!          ◀──ExecSink─── reading thread ◀── stdin       reading stops the command, not msb
//!          ◀──signal───── Interrupts                     the second one ends msb
//! ```

use std::{
    io::{self, Read},
    time::Instant,
};

use anyhow::Context as _;
use bytes::Bytes;
use microsandbox::{ExecEvent, ExecHandle, ExecSink, ExitStatus};
use tokio::{
    io::{AsyncWrite, AsyncWriteExt, Stderr, Stdout},
    sync::mpsc,
};

use crate::{interrupt::Interrupts, output::OutputClosed};

/// One read of standard input; what a pipe holds on Linux.
const INPUT_BYTES: usize = 64 * 1024;

/// Pieces of input on their way. The reading thread waits beyond that.
const INPUT_QUEUE: usize = 2;

/// How a command ended, and when it was first heard of.
#[derive(Debug)]
pub(crate) struct Ended {
    /// None: the user detached first.
    pub(crate) status: Option<ExitStatus>,
    pub(crate) at: Instant,
    pub(crate) first_output: Option<Instant>,
}

/// Runs a started command on msb's streams until it has ended and its output is written.
///
/// A first signal is passed on to the command; a second one ends this with the signal as the
/// error. Dropping `command`, as any error does, kills it with all its descendants.
pub(crate) async fn run(
    mut command: ExecHandle,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Ended> {
    if let Some(sink) = command.take_stdin() {
        feed(sink);
    }
    let mut output = Output::new();
    let mut first_output = None;
    let mut interrupted = false;
    loop {
        tokio::select! {
            interrupt = interrupts.next() => {
                if interrupted {
                    return Err(interrupt.into());
                }
                interrupted = true;
                command.signal(interrupt.number().into()).await?;
            }
            written = output.write(), if output.is_pending() => written?,
            event = command.recv(), if !output.is_pending() => match event {
                Some(ExecEvent::Stdout(bytes)) => {
                    first_output.get_or_insert_with(Instant::now);
                    output.pending = Some(Pending { target: Target::Stdout, bytes });
                }
                Some(ExecEvent::Stderr(bytes)) => {
                    first_output.get_or_insert_with(Instant::now);
                    output.pending = Some(Pending { target: Target::Stderr, bytes });
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    let status = Some(command.wait().await?);
    Ok(Ended { status, at: Instant::now(), first_output })
}

/// The outputs of msb, and the piece of the command's output that is on its way there.
#[derive(Debug)]
struct Output {
    stdout: Stdout,
    stderr: Stderr,
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    target: Target,
    bytes: Bytes,
}

#[derive(Debug, Clone, Copy)]
enum Target {
    Stdout,
    Stderr,
}

impl Output {
    fn new() -> Self {
        Self { stdout: tokio::io::stdout(), stderr: tokio::io::stderr(), pending: None }
    }

    fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Writes what is pending. Cancel safe: called again, it goes on where it was.
    async fn write(&mut self) -> anyhow::Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let written = match pending.target {
            Target::Stdout => write_through(&mut self.stdout, &mut pending.bytes).await,
            Target::Stderr => write_through(&mut self.stderr, &mut pending.bytes).await,
        };
        self.pending = None;
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(OutputClosed.into()),
            written => written.context("write the command's output"),
        }
    }
}

async fn write_through(to: &mut (impl AsyncWrite + Unpin), bytes: &mut Bytes) -> io::Result<()> {
    to.write_all_buf(bytes).await?;
    to.flush().await
}

/// Passes standard input to the command for as long as either lasts.
///
/// The reading has a thread of its own, which nobody waits for: a terminal or pipe that stays open
/// and silent keeps neither the command nor msb from ending.
fn feed(sink: ExecSink) {
    let (sender, mut pieces) = mpsc::channel::<Bytes>(INPUT_QUEUE);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        let mut piece = vec![0; INPUT_BYTES];
        loop {
            match input.read(&mut piece) {
                Ok(0) => return,
                Ok(len) => {
                    if sender.blocking_send(Bytes::copy_from_slice(&piece[..len])).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "read standard input");
                    return;
                }
            }
        }
    });
    tokio::spawn(async move {
        while let Some(piece) = pieces.recv().await {
            if let Err(error) = sink.write(&piece).await {
                tracing::debug!(%error, "the command takes no more input");
                return;
            }
        }
        if let Err(error) = sink.close().await {
            tracing::debug!(%error, "the command's input could not be closed");
        }
    });
}
