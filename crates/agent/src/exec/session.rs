//! One command from its start to its last frame.
//!
//! ```text
//!  starting ──▶ running ──leader ended──▶ draining ──outputs ended or 50 ms──▶ account, ExecExited
//!    │  └─────────────┴──timeout──▶ all its processes killed ──▶ (leader ended)
//!    └──▶ ExecFailed
//! ```
//!
//! The task that runs [`Session::run`] owns these states; the engine only hands in what the client
//! sent. Dropping the task closes the pipes and forgets the command, which does not end it.

use std::cell::Cell;
use std::future;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;

use microsandbox_protocol::{ExecExited, Kind, StreamId, TerminalSize, Usage, WindowExceeded};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, oneshot};

use crate::cgroup::{Account, Cgroup};
use crate::exec::child::{StartFailed, Starting};
use crate::exec::flow::{Deadline, Drain, OutputCredit};
use crate::exec::input::{Input, Sink};
use crate::exec::output::{Destination, Output};
use crate::exec::stdio::Ours;
use crate::jobs::{JobRecord, Label};
use crate::link::Outbox;
use crate::sys::process::Ended;

/// What engine and task of a running command share.
#[derive(Debug)]
pub(crate) struct Session {
    pub stream: StreamId,
    pub family: Rc<Family>,
    pub credit: OutputCredit,
    pub input: Option<Input>,
    pub terminal: Option<Rc<AsyncFd<OwnedFd>>>,
    /// What it is called, and what it may use, should it become a job.
    pub label: Label,
    /// The client wants it to go on as a job.
    pub detached: Notify,
}

/// How the running of a session ends.
pub(crate) enum Over {
    /// The command has ended.
    Exited(ExecExited),
    /// The client has left it to itself.
    Detached(Ours, oneshot::Receiver<Ended>),
}

impl Session {
    /// Takes standard input from the client; without a pipe for it, it is dropped.
    ///
    /// # Errors
    /// The client sent more than it was granted.
    pub(crate) fn push_input(&self, bytes: &[u8], end: bool) -> Result<(), WindowExceeded> {
        self.input.as_ref().map_or(Ok(()), |input| input.push(bytes, end))
    }

    /// Tells the terminal, if there is one, its new size.
    pub(crate) fn resize(&self, size: TerminalSize) {
        if let Some(terminal) = &self.terminal {
            // Fails only for a terminal that is gone, which has no size.
            let _ = crate::sys::device::set_terminal_size(terminal, size);
        }
    }

    /// Whether it can become a job: on its terminal, before its end.
    pub(crate) fn can_detach(&self) -> bool {
        self.terminal.is_some() && self.family.leader_alive.get()
    }

    /// Moves input and output until the command has ended or is left to itself.
    pub(crate) async fn run(
        &self,
        mut ours: Ours,
        mut ended: oneshot::Receiver<Ended>,
        deadline: &Deadline,
        outbox: &Outbox,
    ) -> Over {
        let drain = Drain::default();
        let to = Destination::Client { stream: self.stream, credit: &self.credit, outbox };
        let input = self.feed(ours.stdin.take(), outbox);
        let outputs = collect(&ours.stdout, ours.stderr.as_ref(), to, &drain);
        tokio::select! {
            // First: the end of the leader is not taken from whoever comes next.
            biased;
            () = self.detached.notified() => {}
            exited = until_end(&self.family, (&mut ended, deadline), (input, outputs), &drain) => {
                return Over::Exited(exited);
            }
        }
        Over::Detached(ours, ended)
    }

    async fn feed(&self, pipe: Option<AsyncFd<OwnedFd>>, outbox: &Outbox) {
        let Some(input) = &self.input else { return };
        let sink = match (pipe, &self.terminal) {
            (Some(pipe), _) => Sink::Pipe(pipe),
            (None, Some(terminal)) => Sink::Terminal(terminal),
            (None, None) => return,
        };
        input.pump(sink, self.stream, outbox).await;
    }
}

/// Waits until the program runs; one that does not within its time is killed, which ends it as a
/// command that has begun.
///
/// # Errors
/// Why there is no program to run.
pub(crate) async fn started(
    starting: Starting,
    family: &Family,
    deadline: &Deadline,
) -> Result<(), StartFailed> {
    let mut outcome = pin!(starting.outcome());
    tokio::select! {
        biased;
        outcome = &mut outcome => return outcome,
        () = deadline.passed() => family.expire(),
    }
    outcome.await
}

/// Moves output of a detached job into its record until the job has ended, then tells how.
pub(crate) async fn run_detached(
    record: &JobRecord,
    ours: Ours,
    mut ended: oneshot::Receiver<Ended>,
    deadline: &Deadline,
) -> ExecExited {
    let drain = Drain::default();
    let Ours { stdout, stderr, .. } = ours;
    let outputs = collect(&stdout, stderr.as_ref(), Destination::Record(record), &drain);
    until_end(record.family(), (&mut ended, deadline), (future::ready(()), outputs), &drain).await
}

/// Lets input and outputs go on until the command has ended and its output is taken.
async fn until_end(
    family: &Family,
    (ended, deadline): (&mut oneshot::Receiver<Ended>, &Deadline),
    (input, outputs): (impl Future<Output = ()>, impl Future<Output = ()>),
    drain: &Drain,
) -> ExecExited {
    let (mut input, mut outputs) = (pin!(input), pin!(outputs));
    let mut timeout = pin!(deadline.passed());
    let (mut leader, mut fed, mut collected) = (None, false, false);
    while leader.is_none() || !collected {
        tokio::select! {
            biased;
            end = &mut *ended, if leader.is_none() => {
                leader = Some(end.expect("the reaper tells every registered child's end"));
                family.leader_ended();
                drain.begin();
            }
            () = &mut outputs, if !collected => collected = true,
            () = &mut input, if !fed => fed = true,
            () = &mut timeout, if leader.is_none() && !family.is_expired() => family.expire(),
        }
    }
    let Some(leader) = leader else { unreachable!("the loop ends with it") };
    let account = family.account(&leader);
    ExecExited {
        status: leader.status,
        timed_out: family.is_expired(),
        out_of_memory: account.out_of_memory,
        usage: account.usage,
    }
}

async fn collect(
    stdout: &AsyncFd<OwnedFd>,
    stderr: Option<&AsyncFd<OwnedFd>>,
    to: Destination<'_>,
    drain: &Drain,
) {
    let errors = async {
        if let Some(source) = stderr {
            Output { source, kind: Kind::Stderr, to }.pump(drain).await;
        }
    };
    tokio::join!(Output { source: stdout, kind: Kind::Stdout, to }.pump(drain), errors);
}

/// The processes of one command.
#[derive(Debug)]
pub(crate) struct Family {
    /// First process, leader of its session and process group.
    leader: Pid,
    leader_alive: Cell<bool>,
    /// It was killed because its time was up.
    expired: Cell<bool>,
    /// None where the agent is no PID 1 and has no groups to give.
    cgroup: Option<Cgroup>,
}

impl Family {
    /// The family of a process that has just been started.
    pub(crate) const fn new(leader: Pid, cgroup: Option<Cgroup>) -> Self {
        Self { leader, leader_alive: Cell::new(true), expired: Cell::new(false), cgroup }
    }

    /// Process id of the first process.
    pub(crate) fn pid(&self) -> u32 {
        self.leader.as_raw().unsigned_abs()
    }

    /// What its processes have used so far.
    pub(crate) fn usage(&self) -> Usage {
        self.cgroup.as_ref().map_or_else(Usage::default, |cgroup| cgroup.account().usage)
    }

    /// Sends `signal` to the process group, as a terminal would. One that no process can answer
    /// ends every process the command has started.
    ///
    /// # Errors
    /// What the kernel said: `ESRCH` when the command has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), Errno> {
        if signal == Signal::SIGKILL {
            self.kill_all();
            return Ok(());
        }
        self.signal_group(signal)
    }

    fn signal_group(&self, signal: Signal) -> Result<(), Errno> {
        // A reaped leader's number may be another process's by now.
        if !self.leader_alive.get() {
            return Err(Errno::ESRCH);
        }
        match killpg(self.leader, signal) {
            // It is just being made and leads no group yet.
            Err(Errno::ESRCH) => kill(self.leader, signal),
            done => done,
        }
    }

    /// Kills every process the command has started, however deep.
    pub(crate) fn kill_all(&self) {
        let killed = self.cgroup.as_ref().map_or(Err(Errno::ENOTSUP), Cgroup::kill);
        if killed.is_err() {
            // ESRCH: it has ended. Nothing more can be done if anything else fails.
            let _ = self.signal_group(Signal::SIGKILL);
        }
    }

    /// Kills all of it because its time is up.
    fn expire(&self) {
        self.expired.set(true);
        self.kill_all();
    }

    const fn is_expired(&self) -> bool {
        self.expired.get()
    }

    fn leader_ended(&self) {
        self.leader_alive.set(false);
    }

    fn account(&self, leader: &Ended) -> Account {
        let own = Account { usage: leader.usage, out_of_memory: false };
        self.cgroup.as_ref().map_or(own, Cgroup::account)
    }
}
