//! A client that looks at a job: its place in the output, and what it still takes.

use std::rc::Rc;

use microsandbox_protocol::{JobGap, MAX_BULK_LEN, StreamId};
use tokio::task::AbortHandle;

use super::ring::Found;
use super::{Job, View};
use crate::exec::OutputCredit;
use crate::link::Outbox;

/// A client that looks at a job. It keeps nothing of the job but its place.
#[derive(Debug)]
pub(super) struct Viewer {
    credit: Rc<OutputCredit>,
    task: Option<AbortHandle>,
}

impl Viewer {
    pub(super) fn new(window: u32) -> Self {
        Self { credit: Rc::new(OutputCredit::new(window)), task: None }
    }

    pub(super) fn credit(&self) -> Rc<OutputCredit> {
        Rc::clone(&self.credit)
    }

    pub(super) fn run_by(&mut self, task: AbortHandle) {
        self.task = Some(task);
    }

    pub(super) fn stop(&self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Sends output from `position` until the job has ended, or until there is no more.
pub(super) async fn show(
    job: &Job,
    mut position: u64,
    what: View,
    (stream, credit): (StreamId, &OutputCredit),
    outbox: &Outbox,
) {
    loop {
        // Before looking: what comes in between is not missed.
        let changed = job.changed.notified();
        let has_ended = job.ended.get().is_some();
        let found = match what.output {
            true => job.ring.read(position, credit.allowed(MAX_BULK_LEN).max(1)),
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
                outbox.bulk(piece).await;
            }
            Found::End if has_ended || !what.follow => return,
            Found::End => changed.await,
        }
    }
}
