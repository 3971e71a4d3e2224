//! The client end of a sandbox's relay: one connection, many commands.

pub(crate) mod files;
pub(crate) mod jobs;
mod metrics;
mod standstill;

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    os::unix::net::UnixStream as StdUnixStream,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use microsandbox_protocol::{
    Credit, Detach, Drain, Ended, Exec, ExecExited, ExecFailed, ExecStarted, Frame, JobAttached,
    JobInfo, Kill, Kind, LimitedExec, MAX_BODY_LEN, MAX_BULK_LEN, Message, Program, Ready,
    ReceiveWindow, Resize, SendWindow, Signal, Stop, StreamId, TerminalSize, Unsupported, Welcome,
};
use tokio::{
    net::UnixStream,
    sync::{Notify, mpsc, watch},
};

use crate::{
    Error, ExitRecord, Result, SandboxDir,
    link::{FrameReader, FrameSender},
    own_commands::self_test,
};

/// A connection to a running sandbox. Cheap to clone; all clones share it.
#[derive(Debug, Clone)]
pub struct AgentClient {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    welcome: Welcome,
    sender: FrameSender,
    streams: Mutex<HashMap<StreamId, Route>>,
    next_stream: AtomicU32,
    open: watch::Receiver<bool>,
    end: OnceLock<ExitRecord>,
}

/// Where frames of a stream go. Only the table of streams has it: when the link closes and the table
/// is emptied, the holder of the stream finds its queue closed.
#[derive(Debug)]
struct Route {
    updates: mpsc::UnboundedSender<Frame>,
    stdin: Arc<StdinState>,
}

/// What the reader of the connection shares with those who write to a command's input.
#[derive(Debug)]
struct StdinState {
    window: Mutex<SendWindow>,
    closed: AtomicBool,
    changed: Notify,
}

impl StdinState {
    fn new() -> Self {
        // The agent opens the window when the command has started.
        let window = Mutex::new(SendWindow::new(0));
        Self { window, closed: AtomicBool::new(false), changed: Notify::new() }
    }

    fn window(&self) -> MutexGuard<'_, SendWindow> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn grant(&self, bytes: u32) {
        self.window().grant(bytes);
        self.changed.notify_waiters();
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }
}

impl AgentClient {
    /// Connects to the relay in `dir` and hears its welcome.
    ///
    /// # Errors
    /// [`Error::Connect`] when nobody listens, [`Error::Protocol`] when somebody else does.
    pub async fn connect(dir: &SandboxDir) -> Result<Self> {
        let path = dir.socket_path();
        let connect = || {
            let (_held_open, short) = dir.short_socket_path()?;
            let socket = StdUnixStream::connect(short)?;
            socket.set_nonblocking(true)?;
            UnixStream::from_std(socket)
        };
        let failed = |source| Error::Connect { path: path.clone(), source };
        let socket = connect().map_err(failed)?;
        // One that hangs up before a word is about to be gone.
        let gone = || failed(io::ErrorKind::ConnectionAborted.into());
        Self::greet(socket).await?.ok_or_else(gone)
    }

    /// Hears the welcome of whoever is at the other end; `None` when it hangs up first.
    async fn greet(socket: UnixStream) -> Result<Option<Self>> {
        let (input, output) = socket.into_split();
        let mut reader = FrameReader::new(input, "relay");
        let Some(first) = reader.next().await? else { return Ok(None) };
        let welcome = Welcome::from_frame(&first)
            .map_err(|source| Error::Protocol { peer: "relay", source })?;
        let (opened, open) = watch::channel(true);
        let shared = Arc::new(Shared {
            next_stream: AtomicU32::new(0),
            welcome,
            sender: FrameSender::start(output),
            streams: Mutex::default(),
            open,
            end: OnceLock::new(),
        });
        tokio::spawn(dispatch(reader, Arc::downgrade(&shared), opened));
        Ok(Some(Self { shared }))
    }

    /// What the guest said when it became ready.
    pub fn ready(&self) -> &Ready {
        &self.shared.welcome.ready
    }

    /// Runs a command; its output comes through the stream.
    ///
    /// # Errors
    /// [`Error::TooLong`] before anything is sent; [`Error::Closed`] when the sandbox has ended.
    pub fn exec(&self, exec: &Exec) -> Result<ExecStream> {
        self.open(exec, program_name(exec), exec.window)
    }

    /// As [`AgentClient::exec`], within limits.
    ///
    /// # Errors
    /// As [`AgentClient::exec`]; an agent that knows no limits refuses through the stream.
    pub fn exec_limited(&self, limited: &LimitedExec) -> Result<ExecStream> {
        self.open(limited, program_name(&limited.exec), limited.exec.window)
    }

    /// Opens a stream with `request`; `program` names it in errors.
    fn open(&self, request: &impl Message, program: String, window: u32) -> Result<ExecStream> {
        if !request.fits() {
            return Err(Error::TooLong { limit: MAX_BODY_LEN });
        }
        let (updates, received) = mpsc::unbounded_channel();
        let stdin = Arc::new(StdinState::new());
        let id = self.shared.claim_stream(Route { updates, stdin: Arc::clone(&stdin) });
        // Asked after the stream is in the table: a link that closes later empties the table.
        if !*self.shared.open.borrow() {
            self.shared.streams().remove(&id);
            return Err(Error::Closed { during: "the start of a command" });
        }
        self.shared.sender.send(request.to_frame(id));
        Ok(ExecStream {
            id,
            program,
            client: self.clone(),
            stdin,
            received,
            window: ReceiveWindow::new(window),
            ended: false,
        })
    }

    /// Has the guest run a command that does nothing; gives the time that took, all the way and back.
    ///
    /// # Errors
    /// [`Error::Exec`] when the guest starts none, [`Error::Closed`] when the sandbox has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ping(&self) -> Result<Duration> {
        let asked = Instant::now();
        let mut command = self.exec(&self_test())?;
        while command.next().await?.is_some() {}
        Ok(asked.elapsed())
    }

    /// Asks the supervisor to end the sandbox: in order within `timeout`, by force after it. Zero
    /// kills at once.
    pub fn stop(&self, timeout: Duration) {
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        self.shared.sender.send(Stop { timeout_ms }.to_frame(0));
    }

    /// How the sandbox ended, once its supervisor has said so.
    pub fn end(&self) -> Option<&ExitRecord> {
        self.shared.end.get()
    }

    /// Asks the supervisor to begin nothing more, and to end the sandbox in order when all that is
    /// under way has ended.
    pub fn drain(&self) {
        self.shared.sender.send(Drain {}.to_frame(0));
    }

    /// Waits until the supervisor has closed the link, which it does when the sandbox has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn closed(&self) {
        let mut open = self.shared.open.clone();
        // An error means that the sender is gone, and with it the connection.
        let _gone = open.wait_for(|open| !open).await;
    }
}

/// What a command is called in errors.
fn program_name(exec: &Exec) -> String {
    match &exec.program {
        Program::Path(path) => path.clone(),
        Program::SelfTest => "self test".into(),
    }
}

impl Shared {
    /// Keeps the supervisor's last word for those who find the link closed.
    fn note_end(&self, frame: &Frame) {
        let record = Ended::from_frame(frame).ok();
        match record.and_then(|ended| serde_json::from_str(&ended.exit_record).ok()) {
            Some(record) => _ = self.end.set(record),
            None => tracing::debug!("the supervisor's last word could not be read"),
        }
    }

    fn streams(&self) -> MutexGuard<'_, HashMap<StreamId, Route>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim_stream(&self, route: Route) -> StreamId {
        let mut streams = self.streams();
        loop {
            let turn = self.next_stream.fetch_add(1, Ordering::Relaxed);
            let id = self.welcome.first_stream + turn % self.welcome.stream_count.max(1);
            if let Entry::Vacant(free) = streams.entry(id) {
                free.insert(route);
                return id;
            }
        }
    }
}

/// Hands arriving frames to their streams until the link closes.
async fn dispatch(
    mut reader: FrameReader<tokio::net::unix::OwnedReadHalf>,
    shared: std::sync::Weak<Shared>,
    open: watch::Sender<bool>,
) {
    loop {
        let frame = match reader.next().await {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%error, "relay link broke");
                break;
            }
        };
        let Some(shared) = shared.upgrade() else { break };
        if frame.stream == 0 && frame.kind == Kind::Ended.byte() {
            shared.note_end(&frame);
        }
        let mut streams = shared.streams();
        let Some(route) = streams.get(&frame.stream) else { continue };
        let mut ended = false;
        match Kind::from_byte(frame.kind) {
            Some(Kind::Credit) => {
                if let Ok(credit) = Credit::from_frame(&frame) {
                    route.stdin.grant(credit.bytes);
                }
                continue;
            }
            Some(Kind::ExecStarted) => {
                if let Ok(started) = ExecStarted::from_frame(&frame) {
                    route.stdin.grant(started.window);
                }
            }
            Some(Kind::JobAttached) => {
                if let Ok(attached) = JobAttached::from_frame(&frame) {
                    route.stdin.grant(attached.window);
                }
            }
            Some(Kind::StdinClosed) => route.stdin.close(),
            Some(Kind::Unsupported) if refuses_to_detach(&frame) => {}
            Some(kind) if kind.ends_stream() => {
                route.stdin.close();
                ended = true;
            }
            _ => {}
        }
        let stream = frame.stream;
        // The holder of the stream may have dropped it; then nobody wants the frame.
        let _unwanted = route.updates.send(frame);
        if ended {
            streams.remove(&stream);
        }
    }
    let _nobody_waits = open.send(false);
    if let Some(shared) = shared.upgrade() {
        for (_, route) in shared.streams().drain() {
            route.stdin.close();
        }
    }
}

/// Whether a frame says that a command cannot become a job, after which its stream goes on.
fn refuses_to_detach(frame: &Frame) -> bool {
    Unsupported::from_frame(frame).is_ok_and(|refused| refused.kind == Kind::Detach.byte())
}

/// One command's stream.
///
/// Dropping it before the command has ended kills the command and all its descendants.
#[derive(Debug)]
pub struct ExecStream {
    id: StreamId,
    program: String,
    client: AgentClient,
    stdin: Arc<StdinState>,
    received: mpsc::UnboundedReceiver<Frame>,
    window: ReceiveWindow,
    ended: bool,
}

/// What happens to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecUpdate {
    /// It runs.
    Started {
        /// Process id in the guest.
        pid: u32,
    },
    /// It wrote to standard output or its terminal.
    Stdout(Bytes),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It has ended; nothing follows.
    Exited(ExecExited),
    /// It goes on as this job; nothing follows. Comes after [`ExecStream::detach`].
    Detached(JobInfo),
    /// It cannot become a job, and goes on as it was.
    NotDetached,
}

impl ExecStream {
    /// Number of the stream on the link.
    pub fn id(&self) -> StreamId {
        self.id
    }

    /// What happens next; `None` once the command has ended.
    ///
    /// Taking output is what lets the command write more: one that is not taken stops its writer in
    /// the guest.
    ///
    /// # Errors
    /// [`Error::Exec`] when the command could not be started, [`Error::Closed`] when the sandbox
    /// ended first.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<ExecUpdate>> {
        while let Some(frame) = self.next_frame().await? {
            if let Some(update) = self.interpret(frame)? {
                return Ok(Some(update));
            }
        }
        Ok(None)
    }

    async fn next_frame(&mut self) -> Result<Option<Frame>> {
        if self.ended {
            return Ok(None);
        }
        let frame = self.received.recv().await;
        self.ended = frame.is_none();
        frame.map(Some).ok_or(Error::Closed { during: "a command" })
    }

    fn interpret(&mut self, frame: Frame) -> Result<Option<ExecUpdate>> {
        let malformed = |source| Error::Protocol { peer: "agent", source };
        Ok(Some(match Kind::from_byte(frame.kind) {
            Some(Kind::ExecStarted) => {
                let started = ExecStarted::from_frame(&frame).map_err(malformed)?;
                ExecUpdate::Started { pid: started.pid }
            }
            Some(Kind::Stdout) => ExecUpdate::Stdout(self.take(frame.body)),
            Some(Kind::Stderr) => ExecUpdate::Stderr(self.take(frame.body)),
            Some(Kind::ExecExited) => {
                self.ended = true;
                ExecUpdate::Exited(ExecExited::from_frame(&frame).map_err(malformed)?)
            }
            Some(Kind::JobInfo) => {
                self.ended = true;
                ExecUpdate::Detached(JobInfo::from_frame(&frame).map_err(malformed)?)
            }
            Some(Kind::Unsupported) if refuses_to_detach(&frame) => ExecUpdate::NotDetached,
            Some(Kind::ExecFailed) => {
                self.ended = true;
                let failed = ExecFailed::from_frame(&frame).map_err(malformed)?;
                return Err(Error::Exec { program: self.program.clone(), failed });
            }
            Some(Kind::Unsupported) => {
                self.ended = true;
                let Unsupported { kind } = Unsupported::from_frame(&frame).map_err(malformed)?;
                let agent = self.client.ready().agent_version.clone();
                return Err(Error::Unsupported { kind, agent });
            }
            _ => return Ok(None),
        }))
    }

    fn take(&mut self, bytes: Bytes) -> Bytes {
        if let Some(bytes) = self.window.consume(bytes.len()) {
            self.client.shared.sender.send(Credit { bytes }.to_frame(self.id));
        }
        bytes
    }

    /// The way into the command's standard input.
    pub fn stdin(&self) -> StdinWriter {
        StdinWriter { id: self.id, client: self.client.clone(), state: Arc::clone(&self.stdin) }
    }

    /// Sends a signal to the command's process group.
    pub fn signal(&self, signal: i32) {
        self.client.shared.sender.send(Signal { signal }.to_frame(self.id));
    }

    /// Asks for the command on a terminal to become a job, which [`ExecUpdate`] tells.
    pub fn detach(&self) {
        self.client.shared.sender.send(Detach {}.to_frame(self.id));
    }

    /// Tells the command's terminal its new size.
    pub fn resize(&self, size: TerminalSize) {
        self.client.shared.sender.send(Resize { size }.to_frame(self.id));
    }
}

impl Drop for ExecStream {
    fn drop(&mut self) {
        if !self.ended && self.client.shared.streams().remove(&self.id).is_some() {
            self.client.shared.sender.send(Kill {}.to_frame(self.id));
        }
    }
}

/// Writes to a command's standard input, no faster than the command reads.
#[derive(Debug, Clone)]
pub struct StdinWriter {
    id: StreamId,
    client: AgentClient,
    state: Arc<StdinState>,
}

impl StdinWriter {
    /// Writes all of `bytes`; waits while the command does not read.
    ///
    /// Gives `false` when the command takes no more input, as a broken pipe would.
    ///
    /// # Cancel safety
    /// Not cancel safe: how much was written is lost.
    pub async fn write(&self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let changed = self.state.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.is_closed() {
                return false;
            }
            let piece = {
                let mut window = self.state.window();
                let len = window.allowed(bytes.len().min(MAX_BULK_LEN));
                window.spend(len).expect("no more than is allowed");
                bytes.split_to(len)
            };
            if piece.is_empty() {
                changed.await;
            } else {
                self.client.shared.sender.send(Frame::bulk(self.id, Kind::Stdin, piece));
            }
        }
        !self.is_closed()
    }

    /// Closes the command's standard input: it reads end of file.
    pub fn close(&self) {
        if !self.is_closed() {
            self.client.shared.sender.send(Frame::end(self.id, Kind::Stdin));
        }
    }

    fn is_closed(&self) -> bool {
        self.state.closed.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use microsandbox_protocol::{
        BootTimings, ExecLimits, ExitStatus, FileOperation, JobOperation, PathBytes, Usage,
    };

    use super::*;

    /// A client, and the other end: a relay and an agent of generation 1, as their frames have been
    /// since its beginning.
    async fn pair() -> (AgentClient, FrameReader<tokio::net::unix::OwnedReadHalf>, FrameSender) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (input, output) = theirs.into_split();
        let sender = FrameSender::start(output);
        let ready = Ready {
            agent_version: "0.0.9".into(),
            kernel_release: "6.12".into(),
            timings: BootTimings::default(),
        };
        sender.send(Welcome { first_stream: 1 << 16, stream_count: 1 << 16, ready }.to_frame(0));
        let client = AgentClient::greet(ours).await.unwrap().unwrap();
        (client, FrameReader::new(input, "client"), sender)
    }

    fn exec() -> Exec {
        Exec { window: 1024, ..Exec::new(Program::Path("true".into())) }
    }

    #[tokio::test]
    async fn an_older_agent_refuses_by_name_what_it_does_not_know() {
        let (client, mut asked, sender) = pair().await;
        let limited = LimitedExec { exec: exec(), limits: ExecLimits::default() };
        let mut limited = client.exec_limited(&limited).unwrap();
        let file = FileOperation::Stat { path: PathBytes::from(b"/".to_vec()), follow: true };
        let mut file = client.file_call(file).unwrap();
        let mut job = client.job_call(JobOperation::Describe { id: None }).unwrap();
        for _ in 0..3 {
            let frame = asked.next().await.unwrap().unwrap();
            sender.send(Unsupported { kind: frame.kind }.to_frame(frame.stream));
        }
        let refused = [
            limited.next().await.map(drop).unwrap_err(),
            file.next().await.map(drop).unwrap_err(),
            job.next().await.map(drop).unwrap_err(),
        ];
        for (error, expected) in
            refused.into_iter().zip([Kind::LimitedExec, Kind::FileCall, Kind::JobCall])
        {
            let Error::Unsupported { kind, agent } = error else { panic!("{error:?}") };
            assert_eq!((kind, agent.as_str()), (expected.byte(), "0.0.9"));
        }
    }

    #[tokio::test]
    async fn a_command_that_cannot_become_a_job_goes_on() {
        let (client, mut asked, sender) = pair().await;
        let mut command = client.exec(&exec()).unwrap();
        let stream = asked.next().await.unwrap().unwrap().stream;
        sender.send(ExecStarted { pid: 7, window: 10 }.to_frame(stream));
        assert_eq!(command.next().await.unwrap(), Some(ExecUpdate::Started { pid: 7 }));
        command.detach();
        let frame = asked.next().await.unwrap().unwrap();
        assert_eq!((frame.stream, frame.kind), (stream, Kind::Detach.byte()));
        sender.send(Unsupported { kind: frame.kind }.to_frame(stream));
        assert_eq!(command.next().await.unwrap(), Some(ExecUpdate::NotDetached));
        let exited = ExecExited {
            status: ExitStatus::Code(3),
            timed_out: false,
            out_of_memory: false,
            usage: Usage::default(),
        };
        sender.send(exited.to_frame(stream));
        assert_eq!(command.next().await.unwrap(), Some(ExecUpdate::Exited(exited)));
    }
}
