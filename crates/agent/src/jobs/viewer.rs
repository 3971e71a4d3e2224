//! A client that looks at a job: its place in the output, what it still takes, and what it types.

use std::cell::OnceCell;
use std::future;
use std::rc::Rc;

use microsandbox_protocol::{Credit, Frame, JobGap, Kind, Message, Resize, StreamId, TerminalSize};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::tcgetpgrp;
use tokio::task::AbortHandle;

use super::ring::Found;
use super::{Job, Terminal, View};
use crate::exec::{Input, OutputCredit, Sink};
use crate::link::{Outbox, PIECE_MAX};
use crate::sys::device::set_terminal_size;

/// A client that looks at a job.
#[derive(Debug)]
pub(super) struct Viewer {
    pub job: Rc<Job>,
    credit: OutputCredit,
    /// Where what it types goes, for one that is attached.
    terminal: Option<Terminal>,
    input: Input,
    task: OnceCell<AbortHandle>,
}

impl Viewer {
    pub(super) fn new(job: Rc<Job>, window: u32, terminal: Option<Terminal>) -> Self {
        let (credit, input) = (OutputCredit::new(window), Input::new());
        Self { job, credit, terminal, input, task: OnceCell::new() }
    }

    pub(super) fn run_by(&self, task: AbortHandle) {
        self.task.get_or_init(|| task);
    }

    pub(super) fn stop(&self) {
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Does what the client asks for; false: it leaves, or does not make sense.
    pub(super) fn handle(&self, kind: Kind, frame: &Frame) -> bool {
        match kind {
            Kind::Credit => {
                let credit = Credit::from_frame(frame);
                credit.map(|Credit { bytes }| self.credit.grant(bytes)).is_ok()
            }
            Kind::Stdin => self.input.push(&frame.body, frame.is_end()).is_ok(),
            Kind::Resize => {
                let Ok(Resize { size }) = Resize::from_frame(frame) else { return false };
                if let Some(terminal) = &self.terminal {
                    resize(terminal, size);
                }
                true
            }
            Kind::Signal => {
                let signal = microsandbox_protocol::Signal::from_frame(frame);
                let Ok(microsandbox_protocol::Signal { signal }) = signal else { return false };
                if let Ok(signal) = Signal::try_from(signal) {
                    // ESRCH: it has just ended.
                    let _ = self.job.family.signal(signal);
                }
                true
            }
            _ => false,
        }
    }

    /// Sends output from `position` until the job has ended, or until there is no more; what is typed
    /// goes the other way meanwhile.
    pub(super) async fn show(&self, position: u64, what: View, stream: StreamId, outbox: &Outbox) {
        let typed = async {
            if let Some(terminal) = &self.terminal {
                self.input.pump(Sink::Terminal(terminal), stream, outbox).await;
            }
            // The job's end is what ends this.
            future::pending::<()>().await;
        };
        tokio::select! {
            () = self.send(position, what, stream, outbox) => {}
            () = typed => {}
        }
    }

    async fn send(&self, mut position: u64, what: View, stream: StreamId, outbox: &Outbox) {
        let (job, credit) = (&self.job, &self.credit);
        loop {
            // Before looking: what comes in between is not missed.
            let changed = job.changed.notified();
            let has_ended = job.ended.get().is_some();
            let found = match what.output {
                true => job.ring.read(position, credit.allowed(PIECE_MAX).max(1)),
                false => Found::End,
            };
            match found {
                Found::Gap(bytes) => {
                    outbox.control(stream, &JobGap { bytes });
                    position += bytes;
                }
                Found::Bytes(..) if credit.allowed(1) == 0 => credit.available().await,
                Found::Bytes(kind, bytes) => {
                    let mut piece = outbox.piece();
                    piece.room()[..bytes.len()].copy_from_slice(&bytes);
                    piece.seal(stream, kind, bytes.len());
                    credit.spend(bytes.len());
                    position += bytes.len() as u64;
                    if self.terminal.is_some() {
                        job.seen.set(position.max(job.seen.get()));
                    }
                    outbox.bulk(piece).await;
                }
                Found::End if has_ended || !what.follow => return,
                Found::End => changed.await,
            }
        }
    }
}

/// Gives a terminal the size of the client's.
pub(super) fn resize(terminal: &Terminal, size: TerminalSize) {
    // Fails only for a terminal that is gone, which has no size.
    let _ = set_terminal_size(terminal, size);
}

/// Has the program in the foreground draw its screen anew, for one who has not seen it.
pub(super) fn redraw(terminal: &Terminal) {
    if let Ok(foreground) = tcgetpgrp(terminal) {
        // Nobody is there, nobody draws.
        let _ = killpg(foreground, Signal::SIGWINCH);
    }
}
