//! Standing still: the guest's processors are stopped and let go on, and saved meanwhile, at a
//! client's wish.
//!
//! ```text
//!  goes on ─Pause→ (the VMM is asked) ─done→ stands still ─Resume→ (the VMM is asked) ─done→ goes on
//!     └─Save→ (it is saved) ─done→ goes on        └─ an end, in order ─▶ goes on, to be ended
//! ```
//!
//! One wish is seen to at a time, on a task of its own: a VMM that does not answer keeps nobody else
//! waiting. The session owns the state; what follows from it for clients and timers is done there.

use std::{path::PathBuf, sync::Arc};

use microsandbox_protocol::{Outcome, StreamId};
use tokio::{
    sync::oneshot,
    task::{JoinError, JoinHandle},
};

use super::{
    machine::Machine,
    relay::{ClientId, owner},
    save::{self, SaveOrder, Unsaved, save},
};
use crate::{SandboxDir, checkpoint::Shape};

/// What a client wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Want {
    /// Stand still.
    Pause,
    /// Go on.
    Resume,
    /// Be saved into that folder of the sandbox's directory.
    Save {
        /// Its name.
        folder: String,
    },
}

/// Whether the machine stands still, and what is being done about it.
#[derive(Debug)]
pub(super) struct Standstill {
    paused: bool,
    task: Option<Task>,
    dir: SandboxDir,
    /// That of the machine, where it can be saved.
    shape: Option<Shape>,
    /// What was saved for clients that are still there; theirs to take away.
    saved: Vec<(ClientId, PathBuf)>,
}

#[derive(Debug)]
struct Task {
    asker: StreamId,
    work: JoinHandle<Result<Outcome, String>>,
    /// The state it ends in, when all goes well.
    paused: bool,
    saving: Option<Saving>,
}

#[derive(Debug)]
struct Saving {
    folder: PathBuf,
    /// Told when the agent holds the link.
    held: Option<oneshot::Sender<()>>,
}

/// A wish that was seen to, or not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Settled {
    /// Stream of the client to tell.
    pub(super) asker: StreamId,
    pub(super) outcome: Outcome,
}

impl Standstill {
    pub(super) fn new(dir: SandboxDir, shape: Option<Shape>) -> Self {
        Self { paused: false, task: None, dir, shape, saved: Vec::new() }
    }

    /// Whether the machine stands still because somebody wanted it.
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
        match self.try_begin(want, asker, machine) {
            Ok(task) => {
                self.task = Some(task);
                None
            }
            Err(outcome) => Some(Settled { asker, outcome }),
        }
    }

    fn try_begin(&self, want: Want, asker: StreamId, machine: &Machine) -> Result<Task, Outcome> {
        let unsupported = || Outcome::Unsupported { vmm: machine.vmm.to_string() };
        let failed = |detail: &str| Outcome::Failed { detail: detail.into() };
        let qmp = machine.qmp.clone().ok_or_else(unsupported)?;
        if self.task.is_some() {
            return Err(failed("it is being paused, resumed or saved already"));
        }
        let paused = match &want {
            Want::Pause => true,
            Want::Resume => false,
            Want::Save { .. } => self.paused,
        };
        let mut saving = None;
        let work = match want {
            Want::Pause | Want::Resume if paused == self.paused => return Err(Outcome::Done),
            Want::Pause => tokio::spawn(async move { done(qmp.pause().await) }),
            Want::Resume => tokio::spawn(async move { done(qmp.resume().await) }),
            Want::Save { folder } => {
                let into = self.dir.saved_path(&folder);
                let into = into.ok_or_else(|| failed("that is no name of a folder"))?;
                let (told, held) = oneshot::channel();
                saving = Some(Saving { folder: into.clone(), held: Some(told) });
                let order = SaveOrder {
                    qmp,
                    agent: machine.agent.clone(),
                    memory: Arc::clone(&machine.memory),
                    shape: self.shape.clone().ok_or_else(unsupported)?,
                    upper: self.dir.upper_path(),
                    into,
                    is_paused: paused,
                    held,
                };
                tokio::spawn(async move {
                    Ok(match save(order).await {
                        Ok(still) => {
                            let still_us = u64::try_from(still.as_micros()).unwrap_or(u64::MAX);
                            Outcome::Saved { still_us }
                        }
                        Err(Unsaved { detail, disk_full: true }) => Outcome::DiskFull { detail },
                        Err(Unsaved { detail, disk_full: false }) => Outcome::Failed { detail },
                    })
                })
            }
        };
        Ok(Task { asker, work, paused, saving })
    }

    /// Takes note that the agent holds the link.
    pub(super) fn held(&mut self) {
        let saving = self.task.as_mut().and_then(|task| task.saving.as_mut());
        if let Some(told) = saving.and_then(|saving| saving.held.take()) {
            // Whoever waited for it may have given up.
            let _late = told.send(());
        }
    }

    /// What came of the wish that is being seen to; never, when there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn settled(&mut self) -> Settled {
        let Some(task) = &mut self.task else { return std::future::pending().await };
        let outcome = outcome((&mut task.work).await);
        let asker = task.asker;
        let Some(task) = self.task.take() else { return std::future::pending().await };
        match (&outcome, task.saving) {
            (Outcome::Saved { .. }, Some(saving)) => {
                self.saved.push((owner(asker), saving.folder));
            }
            (Outcome::Done, None) => self.paused = task.paused,
            _ => {}
        }
        Settled { asker, outcome }
    }

    /// Removes what was saved for a client that has gone and did not take it away.
    pub(super) fn forget(&mut self, client: ClientId) {
        self.saved.retain(|(owner, folder)| {
            if *owner == client {
                save::remove(folder);
            }
            *owner != client
        });
    }

    /// Lets the machine go on, as it must to end in order; nobody waits for it.
    pub(super) fn let_go(&mut self, machine: &Machine) {
        let interrupted = self.task.take().inspect(|task| {
            task.work.abort();
            if let Some(saving) = &task.saving {
                machine.agent.release();
                save::remove(&saving.folder);
            }
        });
        if let Some(qmp) = machine.qmp.clone()
            && (self.paused || interrupted.is_some())
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

fn done(asked: Result<(), crate::vmm::qemu::qmp::QmpError>) -> Result<Outcome, String> {
    asked.map(|()| Outcome::Done).map_err(|error| error.to_string())
}

fn outcome(done: Result<Result<Outcome, String>, JoinError>) -> Outcome {
    let detail = match done {
        Ok(Ok(outcome)) => return outcome,
        Ok(Err(detail)) => detail,
        Err(error) => error.to_string(),
    };
    Outcome::Failed { detail }
}
