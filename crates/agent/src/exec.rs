//! The exec engine: one stream, one command.
//!
//! Frames of the host go to the session of their stream; sessions answer through the outbox. What a
//! client gets wrong (unknown streams, bad bodies, more bytes than granted) costs that client its
//! command and nobody else anything.

mod child;
mod flow;
mod input;
mod output;
mod plan;
mod session;
mod stdio;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::Duration;

use microsandbox_protocol::{
    Credit, Exec, ExecDefaults, ExecFailed, ExecFailure, ExecLimits, ExecStarted, FileCall, Frame,
    JobCall, JobOperation, Kill, Kind, LimitedExec, Message, Resize, StdinMode, StreamId,
    TerminalSize, Unsupported,
};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::{Notify, oneshot};
use tokio::task::{AbortHandle, spawn_local, yield_now};

use crate::cgroup::{Cgroup, Cgroups};
use crate::exec::child::{Starting, Surroundings};
use crate::exec::flow::Deadline;
use crate::exec::plan::{Plan, bad_args};
use crate::exec::session::{Over, run_detached, started};
use crate::exec::stdio::Ours;
use crate::jobs::{self, Jobs, Label, View};
use crate::link::Outbox;
use crate::metrics;
use crate::reaper::Reaper;
use crate::sys::process::Ended;

pub(crate) use flow::OutputCredit;
pub(crate) use input::{Input, Sink};
pub(crate) use session::{Family, Session};

/// Where commands run and what they start from.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Values for commands that bring none.
    pub defaults: RefCell<ExecDefaults>,
    /// Groups for commands; none where this process does not own the cgroup tree.
    pub cgroups: Option<Rc<Cgroups>>,
    /// The agent's own file, for [`microsandbox_protocol::Program::SelfTest`].
    pub agent: File,
    /// `/dev/null`.
    pub null: File,
    /// Whether this process may become another user.
    pub is_root: bool,
}

/// Starts commands and knows those that run.
#[derive(Debug)]
pub(crate) struct Engine {
    ground: Ground,
    outbox: Outbox,
    reaper: Rc<Reaper>,
    streams: RefCell<HashMap<StreamId, Stream>>,
    jobs: Rc<Jobs>,
    /// A command has told its end.
    ended: Notify,
    stopping: Cell<bool>,
}

#[derive(Debug)]
struct Stream {
    session: Rc<Session>,
    task: AbortHandle,
}

impl Engine {
    /// An engine without commands.
    pub(crate) fn new(ground: Ground, outbox: Outbox, reaper: Rc<Reaper>) -> Rc<Self> {
        Rc::new(Self {
            ground,
            outbox,
            reaper,
            streams: RefCell::default(),
            jobs: Rc::default(),
            ended: Notify::new(),
            stopping: Cell::new(false),
        })
    }

    /// Gives commands that bring no values of their own these from now on.
    pub(crate) fn set_defaults(&self, defaults: ExecDefaults) {
        self.ground.defaults.replace(defaults);
    }

    /// Starts nothing more.
    pub(crate) fn stop_accepting(&self) {
        self.stopping.set(true);
    }

    /// Returns once every command has told its end.
    pub(crate) async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.streams.borrow().is_empty() {
                return;
            }
            ended.await;
        }
    }

    /// Sends `signal` to every command's process group, or only to those on terminals.
    pub(crate) fn signal(&self, signal: Signal, whom: Whom) {
        if whom == Whom::All {
            self.jobs.signal(signal);
        }
        for stream in self.streams.borrow().values() {
            if whom == Whom::All || stream.session.terminal.is_some() {
                // ESRCH: it has just ended.
                let _ = stream.session.family.signal(signal);
            }
        }
    }

    /// Removes what finished commands have left behind, now that some process has ended.
    pub(crate) fn tidy(&self) {
        if let Some(cgroups) = self.ground.cgroups.as_ref().filter(|groups| groups.has_lingering())
        {
            cgroups.tidy();
        }
    }

    /// Handles a frame of a stream.
    pub(crate) fn handle(self: &Rc<Self>, frame: &Frame) {
        let stream = frame.stream;
        let Some(kind) = Kind::from_byte(frame.kind) else {
            return self.outbox.control(stream, &Unsupported { kind: frame.kind });
        };
        if kind.begins_work() && self.is_in_use(stream) {
            // Answering would tell the client that what it has there is over.
            return;
        }
        match kind {
            Kind::Exec => {
                self.exec(
                    stream,
                    Exec::from_frame(frame).map(|exec| (exec, ExecLimits::default())),
                );
            }
            Kind::FileCall => self.file_call(frame),
            Kind::JobCall => self.job_call(frame),
            Kind::MetricsCall => {
                let commands = self.streams.borrow().len() + self.jobs.running();
                self.outbox.control(stream, &metrics::read(commands));
            }
            Kind::LimitedExec => {
                let limited = LimitedExec::from_frame(frame);
                self.exec(stream, limited.map(|LimitedExec { exec, limits }| (exec, limits)));
            }
            Kind::Credit | Kind::Kill | Kind::Resize | Kind::Signal | Kind::Stdin
                if self.jobs.has_viewer(stream) =>
            {
                self.jobs.handle(kind, frame);
            }
            Kind::Stdin => self.with(stream, |session| {
                if session.push_input(&frame.body, frame.is_end()).is_err() {
                    session.family.kill_all();
                }
            }),
            Kind::Credit => {
                self.decoded(frame, |session, Credit { bytes }| session.credit.grant(bytes));
            }
            Kind::Detach => self.with(stream, |session| {
                if session.can_detach() && !self.jobs.is_full() {
                    session.detached.notify_one();
                } else {
                    self.outbox.control(stream, &Unsupported { kind: frame.kind });
                }
            }),
            Kind::Signal => self.decoded(frame, |session, signal| {
                let microsandbox_protocol::Signal { signal } = signal;
                if let Ok(signal) = Signal::try_from(signal) {
                    // ESRCH: it has just ended.
                    let _ = session.family.signal(signal);
                }
            }),
            Kind::Resize => self.decoded(frame, |session, Resize { size }| session.resize(size)),
            Kind::Kill => {
                self.decoded(frame, |session, Kill {}| session.family.kill_all());
                self.forget(stream);
            }
            _ => self.outbox.control(stream, &Unsupported { kind: frame.kind }),
        }
    }

    /// Does `action` with the session of `stream`; one that has just ended is none any more.
    fn with(&self, stream: StreamId, action: impl FnOnce(&Session)) {
        let session = self.streams.borrow().get(&stream).map(|stream| Rc::clone(&stream.session));
        if let Some(session) = session {
            action(&session);
        }
    }

    /// As [`Engine::with`], for a control frame; a body that cannot be read kills the command, whose
    /// client cannot be understood.
    fn decoded<M: Message>(&self, frame: &Frame, action: impl FnOnce(&Session, M)) {
        self.with(frame.stream, |session| match M::from_frame(frame) {
            Ok(message) => action(session, message),
            Err(_) => session.family.kill_all(),
        });
    }

    fn is_in_use(&self, stream: StreamId) -> bool {
        self.streams.borrow().contains_key(&stream) || self.jobs.has_viewer(stream)
    }

    /// Kills the command of every client and forgets the clients, who are those of another machine.
    pub(crate) fn forget_clients(&self) {
        let streams: Vec<_> = self.streams.borrow().keys().copied().collect();
        for stream in streams {
            self.with(stream, |session| session.family.kill_all());
            self.forget(stream);
        }
        self.jobs.leave_all();
    }

    fn forget(&self, stream: StreamId) {
        if let Some(stream) = self.streams.borrow_mut().remove(&stream) {
            stream.task.abort();
        }
    }

    fn exec(
        self: &Rc<Self>,
        stream: StreamId,
        request: Result<(Exec, ExecLimits), microsandbox_protocol::Error>,
    ) {
        let request = request.map_err(|_| bad_args("request"));
        match request.and_then(|(exec, limits)| self.start(stream, exec, limits)) {
            Ok(start) => self.begin(start),
            Err(failed) => self.outbox.control(stream, &failed),
        }
    }

    /// Starts a job, or answers about those there are.
    fn job_call(self: &Rc<Self>, frame: &Frame) {
        let stream = frame.stream;
        let Ok(JobCall { window, operation }) = JobCall::from_frame(frame) else {
            // An operation of a later generation.
            return self.outbox.control(stream, &Unsupported { kind: frame.kind });
        };
        let (jobs, outbox) = (&self.jobs, &self.outbox);
        let seen = View { window, follow: true, from_start: true, output: true };
        match operation {
            JobOperation::Start { exec, limits } => {
                let (stdin, terminal) = (StdinMode::Null, None);
                self.start_job(stream, Exec { stdin, terminal, ..exec }, limits);
            }
            JobOperation::StartOnTerminal { exec, limits } => {
                let (stdin, terminal) = (StdinMode::Null, exec.terminal.or(Some(UNSEEN)));
                self.start_job(stream, Exec { stdin, terminal, ..exec }, limits);
            }
            JobOperation::Attach { id, size } => jobs.attach(stream, id, (size, window), outbox),
            JobOperation::Describe { id } => jobs.describe(stream, id, outbox),
            JobOperation::List => outbox.control(stream, &jobs.all()),
            JobOperation::Output { id, follow, from_start } => {
                jobs.view(stream, id, View { follow, from_start, ..seen }, outbox);
            }
            JobOperation::Wait { id } => {
                jobs.view(stream, id, View { output: false, ..seen }, outbox);
            }
            JobOperation::Signal { id, signal } => jobs.answer(stream, id, outbox, |family| {
                if let Ok(signal) = Signal::try_from(signal) {
                    // ESRCH: it has just ended.
                    let _ = family.signal(signal);
                }
            }),
            JobOperation::Kill { id } => jobs.answer(stream, id, outbox, Family::kill_all),
            JobOperation::Forget { id } => jobs.forget(stream, id, outbox),
        }
    }

    fn start_job(self: &Rc<Self>, stream: StreamId, exec: Exec, limits: ExecLimits) {
        let start = match self.jobs.is_full() {
            true => Err(no_resources(&Errno::EAGAIN.into(), "jobs")),
            false => self.start(stream, exec, limits),
        };
        let start = match start {
            Ok(start) => start,
            Err(failed) => return self.outbox.control(stream, &failed),
        };
        let engine = Rc::clone(self);
        let Start { session, ours, ended, deadline, starting, plan } = start;
        let record = self.jobs.add(&session);
        drop(session);
        spawn_local(async move {
            match started(starting, record.family(), &deadline).await {
                Ok(()) => {
                    engine.outbox.control(stream, &record.info());
                    record.end(run_detached(&record, ours, ended, &deadline).await);
                }
                Err(failed) => {
                    engine.outbox.control(stream, &plan.explain(failed));
                    record.withdraw();
                }
            }
            drop(record);
            engine.tidy();
        });
    }

    /// A file operation is a command: another process, whose hanging or end harms nobody else.
    fn file_call(self: &Rc<Self>, frame: &Frame) {
        let stream = frame.stream;
        let Ok(call) = FileCall::from_frame(frame) else {
            // An operation of a later generation.
            return self.outbox.control(stream, &Unsupported { kind: frame.kind });
        };
        let terms = Terms {
            label: Label::default(),
            stdin: StdinMode::Pipe,
            size: None,
            window: call.window,
            timeout: None,
            changes_user: self.ground.is_root,
        };
        let plan = Plan::of_agent(crate::role::FILES, &call.to_argument());
        match plan.and_then(|plan| self.launch(stream, plan, terms)) {
            Ok(start) => self.begin(start),
            Err(failed) => self.outbox.control(stream, &failed),
        }
    }

    fn start(&self, stream: StreamId, exec: Exec, limits: ExecLimits) -> Result<Start, ExecFailed> {
        let terms = Terms {
            label: Label { command: jobs::command_line(&exec), limits },
            stdin: exec.stdin,
            size: exec.terminal,
            window: exec.window,
            timeout: exec.timeout_ms.map(Duration::from_millis),
            // Without the right to, a command that names no user runs as whoever the agent is.
            changes_user: self.ground.is_root || exec.user.is_some(),
        };
        self.launch(stream, Plan::new(exec, &self.ground.defaults.borrow())?, terms)
    }

    /// Makes a command's process. Whether that comes as far as its program is known later, because
    /// only the process itself may wait for files.
    fn launch(&self, stream: StreamId, plan: Plan, terms: Terms) -> Result<Start, ExecFailed> {
        if self.stopping.get() {
            let failure = ExecFailure::ShuttingDown;
            return Err(ExecFailed { failure, errno: 0, object: String::new() });
        }
        let Terms { label, stdin, size, window, timeout, changes_user } = terms;
        let (ours, theirs) = match size {
            Some(size) => stdio::terminal(size).map_err(|error| no_terminal(&error))?,
            None => stdio::pipes(stdin).map_err(|error| no_resources(&error, "pipes"))?,
        };
        let cgroup = self.cgroup(label.limits)?;
        let around = Surroundings {
            theirs: &theirs,
            null: self.ground.null.as_fd(),
            agent: self.ground.agent.as_fd(),
            on_terminal: size.is_some(),
            changes_user,
            cgroup: cgroup.as_ref().map(|cgroup| cgroup.directory()),
        };
        let starting = Starting::new(&plan, &around).map_err(|failed| plan.explain(failed))?;
        let ended = self.reaper.register(starting.pid);
        let terminal = ours.terminal.clone();
        let input = (stdin == StdinMode::Pipe || terminal.is_some()).then(Input::new);
        let family = Rc::new(Family::new(Pid::from_raw(starting.pid), cgroup));
        let (credit, detached) = (OutputCredit::new(window), Notify::new());
        let session = Session { stream, family, credit, input, terminal, label, detached };
        let deadline = Deadline::after(timeout);
        Ok(Start { session, plan, starting, ours, ended, deadline })
    }

    /// A control group that holds its processes to `limits`.
    fn cgroup(&self, limits: ExecLimits) -> Result<Option<Cgroup>, ExecFailed> {
        let cgroup = self.ground.cgroups.as_ref().map(Cgroups::take).transpose();
        let cgroup = cgroup.map_err(|errno| no_resources(&errno.into(), "cgroup"))?;
        match &cgroup {
            Some(cgroup) => cgroup.limit(&limits).map_err(|(file, errno)| {
                let failure = ExecFailure::ResourceLimit;
                ExecFailed { failure, errno: errno as i32, object: file.to_owned() }
            })?,
            None if !limits.is_empty() => {
                return Err(no_resources(&Errno::ENOTSUP.into(), "cgroup"));
            }
            None => {}
        }
        Ok(cgroup)
    }

    fn begin(self: &Rc<Self>, start: Start) {
        let Start { session, plan, starting, ours, ended, deadline } = start;
        let (stream, session) = (session.stream, Rc::new(session));
        let (engine, mine) = (Rc::clone(self), Rc::clone(&session));
        let task = spawn_local(async move {
            let outbox = &engine.outbox;
            let mut kept = None;
            match started(starting, &mine.family, &deadline).await {
                Ok(()) => {
                    let window = microsandbox_protocol::DEFAULT_WINDOW_BYTES;
                    outbox.control(stream, &ExecStarted { pid: mine.family.pid(), window });
                    match mine.run(ours, ended, &deadline, outbox).await {
                        Over::Exited(exited) => outbox.control(stream, &exited),
                        Over::Detached(ours, ended) => {
                            let record = engine.jobs.add(&mine);
                            outbox.control_in_order(stream, &record.info());
                            kept = Some((record, ours, ended));
                        }
                    }
                }
                Err(failed) => outbox.control(stream, &plan.explain(failed)),
            }
            drop(mine);
            engine.streams.borrow_mut().remove(&stream);
            engine.ended.notify_waiters();
            if let Some((record, ours, ended)) = kept {
                record.end(run_detached(&record, ours, ended, &deadline).await);
            }
            // The client should not wait for the clean-up.
            yield_now().await;
            if let Some(cgroups) = &engine.ground.cgroups {
                cgroups.tidy();
            }
        });
        let task = task.abort_handle();
        self.streams.borrow_mut().insert(stream, Stream { session, task });
    }
}

/// Size of a terminal that nobody looks at.
const UNSEEN: TerminalSize = TerminalSize { rows: 24, columns: 80 };

/// What a command gets beside its plan.
#[derive(Debug)]
struct Terms {
    label: Label,
    stdin: StdinMode,
    size: Option<TerminalSize>,
    window: u32,
    timeout: Option<Duration>,
    changes_user: bool,
}

/// A command whose process is there and whose session has not begun.
struct Start {
    session: Session,
    /// For what is to be said when it comes no further.
    plan: Plan,
    starting: Starting,
    ours: Ours,
    ended: oneshot::Receiver<Ended>,
    deadline: Deadline,
}

/// Which commands are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whom {
    All,
    OnTerminals,
}

fn no_terminal(error: &io::Error) -> ExecFailed {
    let errno = error.raw_os_error().unwrap_or(0);
    ExecFailed { failure: ExecFailure::Terminal, errno, object: "/dev/ptmx".to_owned() }
}

fn no_resources(error: &io::Error, object: &str) -> ExecFailed {
    let errno = error.raw_os_error().unwrap_or(0);
    let failure = match Errno::from_raw(errno) {
        Errno::ENOMEM => ExecFailure::OutOfMemory,
        _ => ExecFailure::ResourceLimit,
    };
    ExecFailed { failure, errno, object: object.to_owned() }
}
