//! Detached jobs: commands that no client's end ends, and the questions clients ask about them.
//!
//! ```text
//!  Start ──▶ runs ──▶ has ended ──Forget, or 256 others have ended since──▶ gone
//!             │ output                                        the engine starts it
//!             ▼
//!            ring ──▶ viewers, each at its own place, within its client's credit
//! ```

mod ring;
mod viewer;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use microsandbox_protocol::{
    DEFAULT_WINDOW_BYTES, Exec, ExecExited, ExecLimits, ExitStatus, FINISHED_JOBS, Frame,
    JOB_COMMAND_BYTES, JOBS_OUTPUT_BYTES, JobAttached, JobDetail, JobDetails, JobEnd, JobId,
    JobInfo, JobUnknown, Kind, Program, RUNNING_JOBS, StreamId, TerminalSize, Timestamp, Usage,
};
use nix::sys::signal::Signal;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::spawn_local;

use crate::exec::{Family, Session};
use crate::jobs::ring::Ring;
use crate::jobs::viewer::Viewer;
use crate::link::Outbox;

/// Code of a job that was never a program, for whoever waits for it already: the shell's.
const NEVER_BEGAN: u8 = 127;

/// All jobs of this guest.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    jobs: RefCell<BTreeMap<JobId, Rc<Job>>>,
    last: Cell<JobId>,
    viewers: RefCell<HashMap<StreamId, Rc<Viewer>>>,
}

/// One job.
#[derive(Debug)]
struct Job {
    id: JobId,
    label: Label,
    started: Timestamp,
    family: Rc<Family>,
    /// Its terminal, until it has ended.
    terminal: RefCell<Option<Terminal>>,
    ring: Ring,
    /// How far in its output whoever was attached to it has seen.
    seen: Cell<u64>,
    ended: Cell<Option<JobEnd>>,
    /// It wrote something, or ended.
    changed: Notify,
}

/// The master of a job's terminal.
type Terminal = Rc<AsyncFd<OwnedFd>>;

/// What a command is called, and what it may use.
#[derive(Debug, Clone, Default)]
pub(crate) struct Label {
    pub command: Vec<String>,
    pub limits: ExecLimits,
}

impl Job {
    fn info(&self) -> JobInfo {
        JobInfo {
            id: self.id,
            command: self.label.command.clone(),
            pid: self.family.pid(),
            started: self.started,
            ended: self.ended.get(),
            output_bytes: self.ring.end(),
            dropped_bytes: self.ring.start(),
        }
    }

    fn detail(&self) -> JobDetail {
        JobDetail {
            info: self.info(),
            limits: self.label.limits,
            usage: self.ended.get().map_or_else(|| self.family.usage(), |end| end.exited.usage),
            terminal: self.terminal.borrow().is_some(),
        }
    }
}

/// Where a job's output goes, and its end.
#[derive(Debug, Clone)]
pub(crate) struct JobRecord {
    job: Rc<Job>,
    jobs: Weak<Jobs>,
}

impl JobRecord {
    /// Keeps what the job wrote, for as long as there is room.
    pub(crate) fn write(&self, kind: Kind, bytes: &[u8]) {
        self.job.ring.push(kind, bytes);
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.trim();
        }
        self.job.changed.notify_waiters();
    }

    /// Keeps how it ended.
    pub(crate) fn end(&self, exited: ExecExited) {
        self.job.ended.set(Some(JobEnd { at: now(), exited }));
        self.job.terminal.take();
        self.job.changed.notify_waiters();
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.forget_oldest();
        }
    }

    /// Forgets it: it never came as far as its program.
    pub(crate) fn withdraw(&self) {
        let status = ExitStatus::Code(NEVER_BEGAN);
        let (timed_out, out_of_memory, usage) = (false, false, Usage::default());
        self.end(ExecExited { status, timed_out, out_of_memory, usage });
        if let Some(jobs) = self.jobs.upgrade() {
            jobs.jobs.borrow_mut().remove(&self.job.id);
        }
    }

    /// What is known of it.
    pub(crate) fn info(&self) -> JobInfo {
        self.job.info()
    }

    /// Its processes.
    pub(crate) fn family(&self) -> &Family {
        &self.job.family
    }
}

impl Jobs {
    /// Whether as many jobs run as may.
    pub(crate) fn is_full(&self) -> bool {
        self.running() >= RUNNING_JOBS
    }

    /// How many jobs run.
    pub(crate) fn running(&self) -> usize {
        self.jobs.borrow().values().filter(|job| job.ended.get().is_none()).count()
    }

    /// Takes in a job that has been started.
    pub(crate) fn add(self: &Rc<Self>, session: &Session) -> JobRecord {
        let id = self.last.get() + 1;
        self.last.set(id);
        let job = Rc::new(Job {
            id,
            label: session.label.clone(),
            started: now(),
            family: Rc::clone(&session.family),
            terminal: RefCell::new(session.terminal.clone()),
            ring: Ring::default(),
            seen: Cell::new(0),
            ended: Cell::new(None),
            changed: Notify::new(),
        });
        self.jobs.borrow_mut().insert(id, Rc::clone(&job));
        JobRecord { job, jobs: Rc::downgrade(self) }
    }

    /// What is known of every job.
    pub(crate) fn all(&self) -> microsandbox_protocol::Jobs {
        let jobs = self.jobs.borrow();
        microsandbox_protocol::Jobs { jobs: jobs.values().map(|job| job.info()).collect() }
    }

    /// Does `action` with a job and answers with what is known of it after that.
    pub(crate) fn answer(
        &self,
        stream: StreamId,
        id: JobId,
        outbox: &Outbox,
        action: impl FnOnce(&Family),
    ) {
        match self.find(id) {
            Some(job) => {
                action(&job.family);
                outbox.control(stream, &job.info());
            }
            None => outbox.control(stream, &JobUnknown { id }),
        }
    }

    /// Forgets a job that has ended, and answers.
    pub(crate) fn forget(&self, stream: StreamId, id: JobId, outbox: &Outbox) {
        self.answer(stream, id, outbox, |_| {});
        self.jobs.borrow_mut().retain(|known, job| *known != id || job.ended.get().is_none());
    }

    /// Tells all there is to know of a job, or of every one.
    pub(crate) fn describe(&self, stream: StreamId, id: Option<JobId>, outbox: &Outbox) {
        let jobs = self.jobs.borrow();
        let asked = |job: &&Rc<Job>| id.is_none_or(|id| job.id == id);
        let jobs: Vec<_> = jobs.values().filter(asked).map(|job| job.detail()).collect();
        match id {
            Some(id) if jobs.is_empty() => outbox.control(stream, &JobUnknown { id }),
            _ => outbox.control(stream, &JobDetails { jobs }),
        }
    }

    /// Lets a client look at a job's output until its end, or only at what there is.
    pub(crate) fn view(self: &Rc<Self>, stream: StreamId, id: JobId, what: View, outbox: &Outbox) {
        let Some(job) = self.find(id) else { return outbox.control(stream, &JobUnknown { id }) };
        let position = if what.from_start { 0 } else { job.ring.end() };
        self.watch((stream, outbox), &job, (position, what), None);
    }

    /// Connects a client to a job: from where it was last looked at, with its terminal if it has one.
    pub(crate) fn attach(
        self: &Rc<Self>,
        stream: StreamId,
        id: JobId,
        (size, window): (Option<TerminalSize>, u32),
        outbox: &Outbox,
    ) {
        let Some(job) = self.find(id) else { return outbox.control(stream, &JobUnknown { id }) };
        let terminal = job.terminal.borrow().clone();
        let input = terminal.as_ref().map_or(0, |_| DEFAULT_WINDOW_BYTES);
        let (pid, has_terminal) = (job.family.pid(), terminal.is_some());
        outbox.control(stream, &JobAttached { pid, window: input, terminal: has_terminal });
        if let (Some(terminal), Some(size)) = (&terminal, size) {
            viewer::resize(terminal, size);
            viewer::redraw(terminal);
        }
        let what = View { window, follow: true, from_start: false, output: true };
        self.watch((stream, outbox), &job, (job.seen.get(), what), terminal);
    }

    fn watch(
        self: &Rc<Self>,
        (stream, outbox): (StreamId, &Outbox),
        job: &Rc<Job>,
        (position, what): (u64, View),
        terminal: Option<Terminal>,
    ) {
        let viewer = Rc::new(Viewer::new(Rc::clone(job), what.window, terminal));
        // Registered first: the task ends by removing itself.
        self.viewers.borrow_mut().insert(stream, Rc::clone(&viewer));
        let (jobs, outbox, mine) = (Rc::clone(self), outbox.clone(), Rc::clone(&viewer));
        let task = spawn_local(async move {
            mine.show(position, what, stream, &outbox).await;
            outbox.control(stream, &mine.job.info());
            jobs.viewers.borrow_mut().remove(&stream);
        });
        viewer.run_by(task.abort_handle());
    }

    /// Handles a frame of a client that looks at a job. One that makes no sense, or leaves, ends the
    /// look and not the job.
    pub(crate) fn handle(&self, kind: Kind, frame: &Frame) {
        let stream = frame.stream;
        let viewer = self.viewers.borrow().get(&stream).cloned();
        if viewer.is_some_and(|viewer| !viewer.handle(kind, frame)) {
            self.leave(stream);
        }
    }

    /// Whether a client looks at a job through `stream`.
    pub(crate) fn has_viewer(&self, stream: StreamId) -> bool {
        self.viewers.borrow().contains_key(&stream)
    }

    fn leave(&self, stream: StreamId) {
        if let Some(viewer) = self.viewers.borrow_mut().remove(&stream) {
            viewer.stop();
        }
    }

    /// Nobody looks at any job any more.
    pub(crate) fn leave_all(&self) {
        for (_, viewer) in self.viewers.borrow_mut().drain() {
            viewer.stop();
        }
    }

    /// Sends `signal` to every job.
    pub(crate) fn signal(&self, signal: Signal) {
        for job in self.jobs.borrow().values() {
            // ESRCH: it has just ended.
            let _ = job.family.signal(signal);
        }
    }

    fn find(&self, id: JobId) -> Option<Rc<Job>> {
        self.jobs.borrow().get(&id).cloned()
    }

    /// Drops output until all that is kept has room: of jobs that have ended first, in their order,
    /// then of the one that has most.
    fn trim(&self) {
        let jobs = self.jobs.borrow();
        let mut kept: usize = jobs.values().map(|job| job.ring.kept()).sum();
        while kept > JOBS_OUTPUT_BYTES {
            let ended = jobs.values().find(|job| job.ended.get().is_some() && job.ring.kept() > 0);
            let largest = || jobs.values().max_by_key(|job| job.ring.kept());
            let Some(job) = ended.or_else(largest) else { return };
            kept -= job.ring.drop_oldest();
        }
    }

    fn forget_oldest(&self) {
        let mut jobs = self.jobs.borrow_mut();
        let ended = jobs.values().filter_map(|job| Some((job.ended.get()?.at, job.id)));
        let mut ended: Vec<_> = ended.collect();
        if ended.len() > FINISHED_JOBS {
            ended.sort_unstable_by_key(|(at, id)| (at.seconds, at.nanoseconds, *id));
            jobs.remove(&ended[0].1);
        }
    }
}

/// What a client wants to see of a job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// Output bytes the client takes before it grants more; 0: it wants none.
    pub window: u32,
    /// Until the job has ended.
    pub follow: bool,
    /// From the oldest byte that is kept.
    pub from_start: bool,
    /// Output is wanted.
    pub output: bool,
}

/// A command line as people are shown it, at most [`JOB_COMMAND_BYTES`] long.
pub(crate) fn command_line(exec: &Exec) -> Vec<String> {
    let program = match &exec.program {
        Program::Path(path) => path.as_str(),
        Program::SelfTest => "self-test",
    };
    let mut room = JOB_COMMAND_BYTES;
    let mut words = Vec::new();
    for word in std::iter::once(program).chain(exec.args.iter().map(String::as_str)) {
        let cut = word.floor_char_boundary(room);
        words.push(word[..cut].to_owned());
        // Each word costs a byte more, so that even empty ones come to an end.
        room = room.saturating_sub(cut + 1);
        if room == 0 {
            break;
        }
    }
    words
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    Timestamp { seconds, nanoseconds: since.subsec_nanos() }
}
