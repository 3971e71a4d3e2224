//! Standing still: the guest's processors are stopped and let go on, at a client's wish.
//!
//! ```text
//!  goes on ─Pause→ (the VMM is asked) ─done→ stands still ─Resume→ (the VMM is asked) ─done→ goes on
//!                                                 └─ an end, in order ─▶ goes on, to be ended
//! ```
//!
//! One wish is seen to at a time, on a task of its own: a VMM that does not answer keeps nobody else
//! waiting. The session owns the state; what follows from it for clients and timers is done there.

use microsandbox_protocol::{Outcome, StreamId};
use tokio::task::{JoinError, JoinHandle};

use super::machine::Machine;
use crate::vmm::qemu::qmp::{Qmp, QmpError};

/// What a client wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
}

/// Whether the machine stands still, and what is being done about it.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    paused: bool,
    task: Option<Task>,
}

#[derive(Debug)]
struct Task {
    want: Want,
    asker: StreamId,
    work: JoinHandle<Result<(), QmpError>>,
}

/// A wish that was seen to, or not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// Stream of the client to tell.
    pub(super) asker: StreamId,
    pub(super) outcome: Outcome,
}

impl Standstill {
    /// Whether the machine stands still.
    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Begins to do what a client wants; gives the answer if that is all there is to it.
    pub(super) fn begin(
        &mut self,
        want: Want,
        asker: StreamId,
        machine: &Machine,
    ) -> Option<Settled> {
        let settled = |outcome| Some(Settled { asker, outcome });
        let Some(qmp) = &machine.qmp else {
            return settled(Outcome::Unsupported { vmm: machine.vmm.to_string() });
        };
        if self.task.is_some() {
            let detail = "it is being paused, resumed or saved already".into();
            return settled(Outcome::Failed { detail });
        }
        if self.paused == (want == Want::Pause) {
            return settled(Outcome::Done);
        }
        let work = tokio::spawn(ask(want, qmp.clone()));
        self.task = Some(Task { want, asker, work });
        None
    }

    /// What came of the wish that is being seen to; never, when there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn settled(&mut self) -> Settled {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let done = (&mut task.work).await;
        let (want, asker) = (task.want, task.asker);
        self.task = None;
        let outcome = outcome(done);
        if outcome == Outcome::Done {
            self.paused = want == Want::Pause;
        }
        Settled { asker, outcome }
    }

    /// Lets the machine go on, as it must to end in order; nobody waits for it.
    pub(super) fn let_go(&mut self, machine: &Machine) {
        let was_asked = self.task.take().is_some_and(|task| {
            task.work.abort();
            task.want == Want::Pause
        });
        if let Some(qmp) = machine.qmp.clone()
            && (self.paused || was_asked)
        {
            // One that does not go on is killed when its time to end is up.
            tokio::spawn(async move {
                if let Err(error) = qmp.resume().await {
                    tracing::warn!(%error, "the machine does not go on");
                }
            });
        }
        self.paused = false;
    }
}

async fn ask(want: Want, qmp: Qmp) -> Result<(), QmpError> {
    match want {
        Want::Pause => qmp.pause().await,
        Want::Resume => qmp.resume().await,
    }
}

fn outcome(done: Result<Result<(), QmpError>, JoinError>) -> Outcome {
    let detail = match done {
        Ok(Ok(())) => return Outcome::Done,
        Ok(Err(error)) => error.to_string(),
        Err(error) => error.to_string(),
    };
    Outcome::Failed { detail }
}
