//! The relay: routes frames between clients and the guest, and holds both to their credit.
//!
//! Every client has a range of stream ids; a frame's id says whose it is. A client that lies about
//! ids or credit is dropped alone. A guest that does is lost.

use std::{collections::HashMap, time::Duration};

use microsandbox_protocol::{
    Concluded, Credit, Drain, Ended, Exec, ExecFailed, ExecFailure, ExecStarted, Frame,
    JobAttached, Kill, Kind, LimitedExec, Message, Metrics, MetricsCall, Outcome, Ping, Pong,
    Ready, Save, SendWindow, Stop, StreamId, Unsupported, Welcome, opening_window,
};
use tokio::{
    io::AsyncWrite,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};

use super::standstill::Want;
use crate::{ExecContent, exec_log::ExecLog, link::FrameSender};

/// Number of a client among those connected; its streams are `id << 16 ..`.
pub(super) type ClientId = u16;

/// Most clients at once; a thousand terminals on one sandbox is a leak somewhere.
const MAX_CLIENTS: usize = 1024;

/// Most commands of one client at once.
const MAX_STREAMS: usize = 4096;

/// Most output a client may ask to have under way on one stream. Bounds what a client that stops
/// reading makes the supervisor keep.
const MAX_WINDOW: usize = 4 << 20;

/// Time for clients to take the last frames of a sandbox that has ended.
const FAREWELL: Duration = Duration::from_secs(1);

/// Stream of the supervisor's own questions; those of clients begin above.
const METRICS_STREAM: StreamId = 2;

const STREAMS_PER_CLIENT: u32 = 1 << 16;

/// Routing state of one sandbox.
#[derive(Debug)]
pub(super) struct Relay {
    agent: FrameSender,
    ready: Ready,
    clients: HashMap<ClientId, Client>,
    /// Last id given out. Ids go round, because frames of a client that has just left are still on
    /// their way from the guest and must not reach the next one.
    last_client: ClientId,
    /// Nothing more is to be begun.
    draining: bool,
    /// The guest stands still, and answers nothing.
    paused: bool,
    streams: HashMap<StreamId, Stream>,
    /// None when it could not be begun.
    log: Option<ExecLog>,
}

#[derive(Debug)]
struct Client {
    sender: FrameSender,
    /// Ends when all that was sent is written.
    writer: JoinHandle<()>,
    /// Reads what it sends.
    reader: Option<AbortHandle>,
}

#[derive(Debug)]
struct Stream {
    /// Its number in the log; none: it is not logged.
    exec: Option<u64>,
    started: bool,
    to_client: SendWindow,
    to_guest: SendWindow,
}

/// What a client wants of the sandbox as a whole.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Begin nothing more, and end when all that is under way has ended.
    Drain,
    /// Stand still or go on; the answer goes to that stream.
    Standstill(Want, StreamId),
    /// End.
    Stop(Stop),
}

/// A client broke the protocol, in these words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ClientLied(pub(super) &'static str);

/// The guest broke the protocol, in these words.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GuestLied(pub(super) String);

/// What a guest's frame means for the run.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum GuestNews {
    /// Nothing: it was passed on.
    None,
    /// The agent sends nothing more until it is released.
    Held,
    /// Everything is on the disks; the machine may go.
    Stopped,
    /// What was asked for with [`Relay::ask_metrics`].
    Uses(Metrics),
}

impl Relay {
    pub(super) fn new(agent: FrameSender, ready: Ready, log: Option<ExecLog>) -> Self {
        let (clients, streams) = (HashMap::new(), HashMap::new());
        Self { agent, ready, clients, last_client: 0, draining: false, paused: false, streams, log }
    }

    /// Writes the log of commands to its end.
    pub(super) async fn close_log(&mut self) {
        if let Some(log) = self.log.take() {
            log.close().await;
        }
    }

    /// Takes a client in and greets it; `None` when there are too many.
    pub(super) fn add_client<W>(&mut self, output: W) -> Option<ClientId>
    where
        W: AsyncWrite + Unpin + Send + 'static,
    {
        if self.clients.len() >= MAX_CLIENTS {
            return None;
        }
        let onwards = (self.last_client..ClientId::MAX).chain(0..self.last_client).map(|id| id + 1);
        let free = onwards.into_iter().find(|id| !self.clients.contains_key(id))?;
        self.last_client = free;
        let welcome = Welcome {
            first_stream: u32::from(free) << 16,
            stream_count: STREAMS_PER_CLIENT,
            ready: self.ready.clone(),
        };
        let (sender, writer) = FrameSender::start_watched(output);
        sender.send(welcome.to_frame(0));
        self.clients.insert(free, Client { sender, writer, reader: None });
        Some(free)
    }

    /// Whether what would wait for the guest is refused, because it stands still.
    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Tells a client what became of its wish; false when it has hung up.
    pub(super) fn conclude(&self, stream: StreamId, outcome: Outcome) -> bool {
        let Some(client) = self.clients.get(&owner(stream)) else { return false };
        client.sender.send(Concluded { outcome }.to_frame(stream));
        true
    }

    /// Where frames for the guest go.
    pub(super) fn agent(&self) -> &FrameSender {
        &self.agent
    }

    /// Whether nobody has anything under way in the guest.
    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    /// Names the task that reads what a client sends: it ends with the client.
    pub(super) fn set_reader(&mut self, client: ClientId, reader: AbortHandle) {
        if let Some(client) = self.clients.get_mut(&client) {
            client.reader = Some(reader);
        }
    }

    /// Forgets a client and closes its link; its commands are killed.
    pub(super) fn remove_client(&mut self, client: ClientId) {
        if let Some(reader) = self.clients.remove(&client).and_then(|client| client.reader) {
            reader.abort();
        }
        let orphans: Vec<StreamId> =
            self.streams.keys().copied().filter(|stream| owner(*stream) == client).collect();
        for stream in orphans {
            self.forget(stream);
            self.agent.send(Kill {}.to_frame(stream));
        }
    }

    /// Tells every client how the sandbox ended and closes the links, those of clients that do not
    /// read after [`FAREWELL`].
    pub(super) async fn farewell(self, exit_record: String) {
        let ended = Ended { exit_record };
        let writers: Vec<JoinHandle<()>> = self
            .clients
            .into_values()
            .map(|client| {
                // Behind the output that is still on its way.
                client.sender.send_in_order(ended.to_frame(0));
                client.writer
            })
            .collect();
        let written = async {
            for writer in writers {
                // Fails only for a task that panicked, whose client hears nothing more.
                let _panicked = writer.await;
            }
        };
        let _in_time = timeout(FAREWELL, written).await;
    }

    /// Asks the guest what it uses.
    pub(super) fn ask_metrics(&self) {
        self.agent.send(MetricsCall {}.to_frame(METRICS_STREAM));
    }

    /// Handles a client's frame; gives what it wants of the sandbox.
    pub(super) fn on_client(
        &mut self,
        client: ClientId,
        frame: Frame,
    ) -> Result<Option<Wish>, ClientLied> {
        if !self.clients.contains_key(&client) {
            // It was dropped while this was on its way.
            return Ok(None);
        }
        if frame.stream == 0 {
            return self.on_client_control(client, &frame);
        }
        if owner(frame.stream) != client {
            return Err(ClientLied("a stream of somebody else"));
        }
        let malformed = |_| ClientLied("a malformed body");
        let kind = Kind::from_byte(frame.kind);
        let begins = kind.is_some_and(Kind::begins_work);
        if self.paused && (begins || kind == Some(Kind::MetricsCall)) {
            self.refuse(client, frame.stream, ExecFailure::Paused);
            return Ok(None);
        }
        if self.draining && begins {
            self.refuse(client, frame.stream, ExecFailure::ShuttingDown);
            return Ok(None);
        }
        match kind {
            Some(Kind::Pause) => return Ok(Some(Wish::Standstill(Want::Pause, frame.stream))),
            Some(Kind::Resume) => return Ok(Some(Wish::Standstill(Want::Resume, frame.stream))),
            Some(Kind::Save) => {
                let Save { folder } = Save::from_frame(&frame).map_err(malformed)?;
                return Ok(Some(Wish::Standstill(Want::Save { folder }, frame.stream)));
            }
            Some(Kind::Exec) => {
                let exec = Exec::from_frame(&frame).map_err(malformed)?;
                self.open_stream(client, frame.stream, exec.window)?;
                self.log_output(frame.stream);
                self.agent.send(frame);
            }
            Some(Kind::LimitedExec) => {
                let limited = LimitedExec::from_frame(&frame).map_err(malformed)?;
                self.open_stream(client, frame.stream, limited.exec.window)?;
                self.log_output(frame.stream);
                self.agent.send(frame);
            }
            // What exactly is asked for is between client and agent, which may both be newer.
            Some(Kind::FileCall | Kind::JobCall) => {
                let window = opening_window(&frame).map_err(malformed)?;
                self.open_stream(client, frame.stream, window)?;
                self.agent.send(frame);
            }
            Some(Kind::MetricsCall) => {
                self.open_stream(client, frame.stream, 0)?;
                self.agent.send(frame);
            }
            Some(Kind::Credit) => {
                let credit = Credit::from_frame(&frame).map_err(malformed)?;
                let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(None) };
                stream.to_client.grant(credit.bytes);
                if stream.to_client.allowed(usize::MAX) > MAX_WINDOW {
                    return Err(ClientLied("a window beyond 4 MiB"));
                }
                self.agent.send(frame);
            }
            Some(Kind::Stdin) => {
                let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(None) };
                let spent = stream.to_guest.spend(frame.body.len());
                spent.map_err(|_| ClientLied("more input than it has credit for"))?;
                self.agent.send(frame);
            }
            // A stream that is not there has ended while this was on its way.
            Some(Kind::Detach | Kind::Resize | Kind::Signal)
                if self.streams.contains_key(&frame.stream) =>
            {
                self.agent.send(frame);
            }
            Some(Kind::Kill) if self.forget(frame.stream) => {
                self.agent.send(frame);
            }
            Some(Kind::Detach | Kind::Kill | Kind::Resize | Kind::Signal) => {}
            _ => self.answer_unsupported(client, &frame),
        }
        Ok(None)
    }

    fn on_client_control(
        &mut self,
        client: ClientId,
        frame: &Frame,
    ) -> Result<Option<Wish>, ClientLied> {
        let malformed = |_| ClientLied("a malformed body");
        match Kind::from_byte(frame.kind) {
            Some(Kind::Stop) => {
                let stop = Stop::from_frame(frame).map_err(malformed)?;
                return Ok(Some(Wish::Stop(stop)));
            }
            Some(Kind::Drain) => {
                let Drain {} = Drain::from_frame(frame).map_err(malformed)?;
                self.draining = true;
                return Ok(Some(Wish::Drain));
            }
            Some(Kind::Ping) => {
                let Ping { token } = Ping::from_frame(frame).map_err(malformed)?;
                if let Some(client) = self.clients.get(&client) {
                    client.sender.send(Pong { token }.to_frame(0));
                }
            }
            _ => self.answer_unsupported(client, frame),
        }
        Ok(None)
    }

    fn refuse(&self, client: ClientId, stream: StreamId, failure: ExecFailure) {
        if let Some(client) = self.clients.get(&client) {
            let refusal = ExecFailed { failure, errno: 0, object: String::new() };
            client.sender.send(refusal.to_frame(stream));
        }
    }

    fn open_stream(
        &mut self,
        client: ClientId,
        id: StreamId,
        window: u32,
    ) -> Result<(), ClientLied> {
        if window as usize > MAX_WINDOW {
            return Err(ClientLied("a window beyond 4 MiB"));
        }
        let open = self.streams.keys().filter(|stream| owner(**stream) == client).count();
        if open >= MAX_STREAMS {
            return Err(ClientLied("too many commands at once"));
        }
        let stream = Stream {
            exec: None,
            started: false,
            to_client: SendWindow::new(window),
            to_guest: SendWindow::new(0),
        };
        if self.streams.insert(id, stream).is_some() {
            return Err(ClientLied("a stream that is in use"));
        }
        Ok(())
    }

    /// Has the output of a command's stream logged. What file operations move is no output, and jobs
    /// have a record of their own.
    fn log_output(&mut self, id: StreamId) {
        if let (Some(log), Some(stream)) = (&mut self.log, self.streams.get_mut(&id)) {
            stream.exec = Some(log.begin());
        }
    }

    /// Forgets a stream; false when it is not there.
    fn forget(&mut self, stream: StreamId) -> bool {
        let Some(stream) = self.streams.remove(&stream) else { return false };
        if let (Some(log), Some(exec)) = (&mut self.log, stream.exec) {
            log.end(exec);
        }
        true
    }

    fn answer_unsupported(&self, client: ClientId, frame: &Frame) {
        if let Some(client) = self.clients.get(&client) {
            client.sender.send(Unsupported { kind: frame.kind }.to_frame(frame.stream));
        }
    }

    /// Handles a frame of the guest.
    pub(super) fn on_guest(&mut self, frame: Frame) -> Result<GuestNews, GuestLied> {
        let kind = Kind::from_byte(frame.kind);
        if frame.stream == 0 {
            return Ok(match kind {
                Some(Kind::Held) => GuestNews::Held,
                Some(Kind::Stopped) => GuestNews::Stopped,
                _ => GuestNews::None,
            });
        }
        let malformed = |error: microsandbox_protocol::Error| GuestLied(error.to_string());
        if frame.stream == METRICS_STREAM {
            // An agent that does not know the question has no jobs either.
            let uses = match kind {
                Some(Kind::Metrics) => Metrics::from_frame(&frame).map_err(malformed)?,
                _ => Metrics::default(),
            };
            return Ok(GuestNews::Uses(uses));
        }
        // A stream that is not there was killed while this was on its way.
        let Some(stream) = self.streams.get_mut(&frame.stream) else { return Ok(GuestNews::None) };
        let mut ended = false;
        match kind {
            Some(Kind::Stdout | Kind::Stderr) => {
                let spent = stream.to_client.spend(frame.body.len());
                spent.map_err(|error| GuestLied(error.to_string()))?;
                if let (Some(log), Some(exec)) = (&mut self.log, stream.exec) {
                    let bytes = frame.body.clone();
                    let content = match kind {
                        Some(Kind::Stderr) => ExecContent::Stderr(bytes),
                        _ => ExecContent::Stdout(bytes),
                    };
                    log.write(exec, content);
                }
            }
            Some(Kind::ExecStarted) => {
                let started = ExecStarted::from_frame(&frame).map_err(malformed)?;
                stream.to_guest.grant(started.window);
                stream.started = true;
            }
            Some(Kind::JobAttached) => {
                let attached = JobAttached::from_frame(&frame).map_err(malformed)?;
                stream.to_guest.grant(attached.window);
                stream.started = true;
            }
            Some(Kind::Credit) => {
                let credit = Credit::from_frame(&frame).map_err(malformed)?;
                stream.to_guest.grant(credit.bytes);
            }
            // It is about something that was sent to a command. Before one has started it is about what
            // opened the stream, which an older agent does not know, and ends it.
            Some(Kind::Unsupported) if stream.started => {
                let Unsupported { kind } = Unsupported::from_frame(&frame).map_err(malformed)?;
                // Who asked for this waits for an answer.
                if kind != Kind::Detach.byte() {
                    return Ok(GuestNews::None);
                }
            }
            Some(kind) if kind.ends_stream() => ended = true,
            Some(Kind::StdinClosed | Kind::JobGap) => {}
            _ => return Ok(GuestNews::None),
        }
        if ended {
            self.forget(frame.stream);
        }
        if let Some(client) = self.clients.get(&owner(frame.stream)) {
            // The guest put a stream's frames in order; control must not overtake output here.
            client.sender.send_in_order(frame);
        }
        Ok(GuestNews::None)
    }
}

pub(super) fn owner(stream: StreamId) -> ClientId {
    ClientId::try_from(stream >> 16).expect("16 bits are left")
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use microsandbox_protocol::Program;
    use proptest::prelude::*;

    use super::*;

    fn relay() -> Relay {
        let ready = Ready {
            agent_version: "1".into(),
            kernel_release: "6.12".into(),
            timings: microsandbox_protocol::BootTimings::default(),
        };
        Relay::new(FrameSender::start(tokio::io::sink()), ready, None)
    }

    fn exec(stream: StreamId, window: u32) -> Frame {
        Exec { window, ..Exec::new(Program::Path("true".into())) }.to_frame(stream)
    }

    fn bulk(stream: StreamId, kind: Kind, len: usize) -> Frame {
        Frame::bulk(stream, kind, Bytes::from(vec![0; len]))
    }

    #[tokio::test]
    async fn clients_that_lie_are_found_out() {
        let mut relay = relay();
        let client = relay.add_client(tokio::io::sink()).unwrap();
        let first = u32::from(client) << 16;
        assert_eq!(relay.on_client(client, exec(first, 100)), Ok(None));
        for (frame, lie) in [
            (exec(first, 100), "a stream that is in use"),
            (exec(first + (1 << 16), 100), "a stream of somebody else"),
            (exec(first + 1, u32::MAX), "a window beyond 4 MiB"),
            (Credit { bytes: u32::MAX }.to_frame(first), "a window beyond 4 MiB"),
            (bulk(first, Kind::Stdin, 1), "more input than it has credit for"),
            (bulk(first + 9, Kind::Exec, 1), "a malformed body"),
        ] {
            assert_eq!(relay.on_client(client, frame), Err(ClientLied(lie)));
        }
    }

    #[tokio::test]
    async fn guest_output_is_held_to_the_clients_credit() {
        let mut relay = relay();
        let client = relay.add_client(tokio::io::sink()).unwrap();
        let first = u32::from(client) << 16;
        relay.on_client(client, exec(first, 100)).unwrap();
        assert_eq!(relay.on_guest(bulk(first, Kind::Stdout, 60)), Ok(GuestNews::None));
        assert_eq!(relay.on_guest(bulk(first, Kind::Stderr, 40)), Ok(GuestNews::None));
        assert!(relay.on_guest(bulk(first, Kind::Stdout, 1)).is_err());
        relay.on_client(client, Credit { bytes: 10 }.to_frame(first)).unwrap();
        assert_eq!(relay.on_guest(bulk(first, Kind::Stdout, 10)), Ok(GuestNews::None));
        assert_eq!(relay.on_guest(bulk(77, Kind::Stdout, 10)), Ok(GuestNews::None));
    }

    #[tokio::test]
    async fn a_client_that_leaves_takes_its_streams_along() {
        let mut relay = relay();
        let client = relay.add_client(tokio::io::sink()).unwrap();
        relay.on_client(client, exec(u32::from(client) << 16, 100)).unwrap();
        relay.remove_client(client);
        assert!(relay.streams.is_empty() && relay.clients.is_empty());
        let next = relay.add_client(tokio::io::sink()).unwrap();
        assert_ne!(next, client, "late output of the one would reach the other");
    }

    proptest! {
        #[test]
        fn no_frame_of_either_end_makes_the_relay_panic_or_keep_a_lost_client(
            frames in prop::collection::vec(
                (any::<bool>(), 0_u32..4, 0_u8..80, prop::collection::vec(any::<u8>(), 0..24)),
                0..64,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let mut relay = relay();
                let client = relay.add_client(tokio::io::sink()).unwrap();
                let first = u32::from(client) << 16;
                relay.on_client(client, exec(first, 100)).unwrap();
                for (from_client, stream, kind, body) in frames {
                    let stream = if stream == 3 { 0 } else { first + stream };
                    let frame = Frame { stream, kind, flags: 0, body: Bytes::from(body) };
                    if !from_client {
                        // A guest that lies ends the run, which is not the relay's part.
                        let _news = relay.on_guest(frame);
                    } else if relay.on_client(client, frame).is_err() {
                        relay.remove_client(client);
                        assert!(relay.streams.is_empty());
                        assert_eq!(relay.on_client(client, exec(first, 100)), Ok(None));
                        assert!(relay.streams.is_empty(), "a client that was dropped is not served");
                    }
                }
            });
        }
    }
}
