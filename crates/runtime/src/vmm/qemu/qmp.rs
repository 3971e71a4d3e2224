//! QMP: the supervisor's end of QEMU's monitor, one line of JSON a message.
//!
//! ```text
//!  execute ─▶ queue ─▶ writer task ─▶ socket ─▶ QEMU
//!     ▲                                           │
//!     └─ answer, by id ◀─ reader task ◀───────────┤
//!  events  ◀─ broadcast ◀─────────────────────────┘
//! ```
//!
//! QEMU may be in the hands of its guest. So a line is bounded before it is kept, an answer counts
//! only for a request that waits for it, every wait has a deadline, and events that nobody takes
//! are dropped. What QEMU says is evidence of nothing but what it said.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{broadcast, mpsc, oneshot},
    time::timeout,
};

/// Longest line taken; QEMU's own answers to what is asked here stay below a tenth of it.
const MAX_LINE: u64 = 64 << 10;

/// Events kept for a reader that is behind; older ones are lost to it.
const EVENTS: usize = 64;

/// Requests waiting to be written; a full queue makes callers wait.
const QUEUE: usize = 16;

/// Why QEMU did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    #[error("{command}: the VMM closed its monitor")]
    Closed { command: &'static str },
    #[error("{command}: no answer from the VMM within {} ms", within.as_millis())]
    Deadline { command: &'static str, within: Duration },
    #[error("{command}: the VMM refused: {reason}")]
    Refused { command: &'static str, reason: String },
}

/// Something that QEMU tells without being asked.
#[derive(Debug, Clone)]
pub(crate) struct QmpEvent {
    /// Its name, such as `STOP`, `RESUME`, `MIGRATION`, `GUEST_PANICKED`.
    pub(crate) name: String,
    /// What comes with it; `null` when nothing does.
    pub(crate) data: Value,
}

/// The monitor of a running QEMU. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
    waiting: Waiting,
    next_id: Arc<AtomicU64>,
    /// Only the reader task keeps it open: who listens hears of its end.
    events: broadcast::WeakSender<QmpEvent>,
}

#[derive(Debug)]
struct Request {
    line: Vec<u8>,
    fd: Option<OwnedFd>,
}

type Answer = Result<Value, String>;

type Askers = HashMap<u64, oneshot::Sender<Answer>>;

/// Who waits for which answer; `None` once there will be no more of them.
#[derive(Debug, Clone)]
struct Waiting(Arc<Mutex<Option<Askers>>>);

impl Qmp {
    /// Talks over `socket`, on tasks of the current runtime that end with the socket.
    ///
    /// # Errors
    /// What the kernel reported.
    pub(crate) fn open(socket: OwnedFd) -> io::Result<Self> {
        let socket = StdUnixStream::from(socket);
        socket.set_nonblocking(true)?;
        let (input, output) = UnixStream::from_std(socket)?.into_split();
        let (requests, queue) = mpsc::channel(QUEUE);
        let (events, _) = broadcast::channel(EVENTS);
        let waiting = Waiting(Arc::new(Mutex::new(Some(HashMap::new()))));
        tokio::spawn(write_requests(output, queue));
        let told = events.downgrade();
        tokio::spawn(read_messages(input, waiting.clone(), events));
        Ok(Self { requests, waiting, next_id: Arc::default(), events: told })
    }

    /// Everything that QEMU tells from now on. A reader that is more than a few dozen events behind
    /// loses the oldest. Closed once the monitor is.
    pub(crate) fn events(&self) -> broadcast::Receiver<QmpEvent> {
        let events = self.events.upgrade().unwrap_or_else(|| broadcast::channel(1).0);
        events.subscribe()
    }

    /// Has QEMU execute `command` and gives what it returns.
    ///
    /// # Errors
    /// [`QmpError`].
    ///
    /// # Cancel safety
    /// The command may be executed all the same; its answer is dropped.
    pub(crate) async fn execute(
        &self,
        command: &'static str,
        arguments: Value,
        within: Duration,
    ) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None, within).await
    }

    /// Gives QEMU a copy of `fd` under `name`, which commands then take as `fd:name`.
    ///
    /// # Errors
    /// [`QmpError`].
    pub(crate) async fn pass_fd(
        &self,
        name: &str,
        fd: OwnedFd,
        within: Duration,
    ) -> Result<(), QmpError> {
        let arguments = json!({ "fdname": name });
        self.execute_with("getfd", arguments, Some(fd), within).await.map(drop)
    }

    /// Gives QEMU a copy of `fd`, as a file that commands then take as `/dev/fdset/` and what this gives.
    ///
    /// # Errors
    /// [`QmpError`].
    pub(crate) async fn add_fd(&self, fd: OwnedFd, within: Duration) -> Result<u64, QmpError> {
        let command = "add-fd";
        let added = self.execute_with(command, Value::Null, Some(fd), within).await?;
        let set = added["fdset-id"].as_u64();
        set.ok_or_else(|| QmpError::Refused { command, reason: "it named no set".into() })
    }

    async fn execute_with(
        &self,
        command: &'static str,
        arguments: Value,
        fd: Option<OwnedFd>,
        within: Duration,
    ) -> Result<Value, QmpError> {
        let closed = || QmpError::Closed { command };
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let answered = self.waiting.expect(id).ok_or_else(closed)?;
        let _forget = Forget { waiting: &self.waiting, id };
        let line = line_of(command, arguments, id);
        let asked = async {
            self.requests.send(Request { line, fd }).await.map_err(|_| closed())?;
            let answer = answered.await.map_err(|_| closed())?;
            answer.map_err(|reason| QmpError::Refused { command, reason })
        };
        timeout(within, asked).await.unwrap_or(Err(QmpError::Deadline { command, within }))
    }
}

fn line_of(command: &'static str, arguments: Value, id: u64) -> Vec<u8> {
    let mut request = json!({ "execute": command, "id": id });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    let mut line = request.to_string().into_bytes();
    line.push(b'\n');
    line
}

/// Takes a request that is over, answered or not, off the list.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.take(self.id);
    }
}

impl Waiting {
    fn expect(&self, id: u64) -> Option<oneshot::Receiver<Answer>> {
        let (sender, answer) = oneshot::channel();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut()?.insert(id, sender);
        Some(answer)
    }

    fn take(&self, id: u64) -> Option<oneshot::Sender<Answer>> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.as_mut()?.remove(&id)
    }

    /// There will be no more answers: whoever waits hears of it.
    fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn write_requests(mut output: OwnedWriteHalf, mut queue: mpsc::Receiver<Request>) {
    // Before anything else a monitor wants this; it has no id, so its answer is nobody's.
    let mut next =
        Some(Request { line: b"{\"execute\":\"qmp_capabilities\"}\n".to_vec(), fd: None });
    while let Some(request) = next {
        if let Err(error) = write_request(&mut output, &request).await {
            // The reader sees the end of the socket and tells whoever waits.
            tracing::debug!(%error, "the VMM's monitor takes no more");
            return;
        }
        next = queue.recv().await;
    }
}

async fn write_request(output: &mut OwnedWriteHalf, request: &Request) -> io::Result<()> {
    let mut line = &request.line[..];
    if let Some(fd) = &request.fd {
        let rights = [fd.as_raw_fd()];
        let socket: &UnixStream = output.as_ref();
        let send = || {
            let parts = [IoSlice::new(line)];
            let control = [ControlMessage::ScmRights(&rights)];
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            Ok(sendmsg::<()>(socket.as_raw_fd(), &parts, &control, flags, None)?)
        };
        line = &line[socket.async_io(Interest::WRITABLE, send).await?..];
    }
    output.write_all(line).await
}

/// One line from QEMU: greeting, answer or event, told apart by what is there.
#[derive(Debug, Deserialize)]
struct Incoming {
    id: Option<u64>,
    #[serde(rename = "return")]
    returned: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    #[serde(default)]
    data: Value,
}

#[derive(Debug, Deserialize)]
struct Refusal {
    desc: String,
}

async fn read_messages(
    input: OwnedReadHalf,
    waiting: Waiting,
    events: broadcast::Sender<QmpEvent>,
) {
    let mut input = BufReader::new(input);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut input).take(MAX_LINE).read_until(b'\n', &mut line).await {
            Ok(0) => break,
            Ok(_) if line.last() == Some(&b'\n') => {}
            other => {
                tracing::warn!(len = line.len(), ?other, "the VMM's monitor broke off a line");
                break;
            }
        }
        match serde_json::from_slice(&line) {
            Ok(message) => route(message, &waiting, &events),
            Err(error) => {
                tracing::warn!(%error, "the VMM's monitor does not speak QMP");
                break;
            }
        }
    }
    waiting.close();
}

fn route(message: Incoming, waiting: &Waiting, events: &broadcast::Sender<QmpEvent>) {
    let Incoming { id, returned, error, event, data } = message;
    if let Some(name) = event {
        // Fails when nobody listens, which is as well.
        let _unheard = events.send(QmpEvent { name, data });
        return;
    }
    let answer = match (returned, error) {
        (_, Some(refusal)) => Err(refusal.desc),
        (Some(value), None) => Ok(value),
        // The greeting, or something newer than this.
        (None, None) => return,
    };
    if let Some(asker) = id.and_then(|id| waiting.take(id)) {
        // One that has stopped waiting does not care.
        let _gave_up = asker.send(answer);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};

    use nix::sys::socket::{ControlMessageOwned, recvmsg};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// A monitor, and the far end of its socket after the capabilities were negotiated.
    fn opened() -> (Qmp, StdUnixStream) {
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        (Qmp::open(ours.into()).unwrap(), theirs)
    }

    /// Reads a request without reading ahead: descriptors come with the bytes.
    fn request(socket: &mut StdUnixStream) -> Value {
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            socket.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        serde_json::from_slice(&line).unwrap()
    }

    fn answer(socket: &mut StdUnixStream, message: &Value) {
        socket.write_all(format!("{message}\r\n").as_bytes()).unwrap();
    }

    /// Plays QEMU on a thread, as another process would be.
    fn play<T: Send + 'static>(
        mut socket: StdUnixStream,
        part: impl FnOnce(&mut StdUnixStream) -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        std::thread::spawn(move || {
            answer(&mut socket, &json!({ "QMP": { "version": {}, "capabilities": [] } }));
            assert_eq!(request(&mut socket)["execute"], "qmp_capabilities");
            answer(&mut socket, &json!({ "return": {} }));
            part(&mut socket)
        })
    }

    #[tokio::test]
    async fn answers_and_events_find_whom_they_are_for() {
        let (qmp, socket) = opened();
        let mut events = qmp.events();
        let qemu = play(socket, |socket| {
            let (first, second) = (request(socket), request(socket));
            answer(socket, &json!({ "event": "STOP", "timestamp": {} }));
            // An answer that nobody waits for, then those waited for the other way round.
            answer(socket, &json!({ "return": {}, "id": 77 }));
            answer(socket, &json!({ "error": { "class": "X", "desc": "no" }, "id": second["id"] }));
            answer(socket, &json!({ "return": { "running": true }, "id": first["id"] }));
        });
        let (status, stop) = tokio::join!(
            qmp.execute("query-status", Value::Null, SOON),
            qmp.execute("stop", Value::Null, SOON),
        );
        assert_eq!(status.unwrap()["running"], true);
        assert!(matches!(stop, Err(QmpError::Refused { reason, .. }) if reason == "no"));
        assert_eq!(events.recv().await.unwrap().name, "STOP");
        qemu.join().unwrap();
    }

    #[tokio::test]
    async fn descriptor_travels_with_its_request() {
        let (qmp, socket) = opened();
        let qemu = play(socket, |socket| {
            let mut line = [0; 256];
            let mut space = nix::cmsg_space!(i32);
            let fds = {
                let mut parts = [io::IoSliceMut::new(&mut line)];
                let flags = MsgFlags::MSG_CMSG_CLOEXEC;
                let raw = socket.as_raw_fd();
                let got = recvmsg::<()>(raw, &mut parts, Some(&mut space), flags).unwrap();
                let rights = got.cmsgs().unwrap().find_map(|control| match control {
                    ControlMessageOwned::ScmRights(fds) => Some(fds),
                    _ => None,
                });
                crate::sys::own_received_fds(rights.unwrap())
            };
            answer(socket, &json!({ "return": {}, "id": 0 }));
            let mut text = String::new();
            for fd in fds {
                BufReader::new(std::fs::File::from(fd)).read_line(&mut text).unwrap();
            }
            text
        });
        let (read, mut write) = io::pipe().unwrap();
        write.write_all(b"through\n").unwrap();
        qmp.pass_fd("state", read.into(), SOON).await.unwrap();
        assert_eq!(qemu.join().unwrap(), "through\n");
    }

    #[tokio::test]
    async fn silence_garbage_and_endless_lines_are_errors() {
        let (qmp, silent) = opened();
        let brief = Duration::from_millis(1);
        let asked = qmp.execute("stop", Value::Null, brief).await;
        assert!(matches!(asked, Err(QmpError::Deadline { .. })));
        drop(silent);
        let endless = vec![b'x'; usize::try_from(MAX_LINE).unwrap() + 1];
        for said in [&b""[..], b"HTTP/1.1 200 OK\r\n", &endless] {
            let (qmp, socket) = opened();
            let said = said.to_vec();
            let qemu = play(socket, move |socket| {
                // The other end may have hung up before all of it was said.
                let _hung_up = socket.write_all(&said);
            });
            let asked = qmp.execute("stop", Value::Null, SOON).await;
            assert!(matches!(asked, Err(QmpError::Closed { .. })), "{asked:?}");
            let told = qmp.events().recv().await;
            assert!(matches!(told, Err(broadcast::error::RecvError::Closed)), "{told:?}");
            qemu.join().unwrap();
        }
    }
}
