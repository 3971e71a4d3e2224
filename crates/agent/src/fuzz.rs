//! A door for the fuzzer to what a host says to an agent. Behind the feature `fuzz`; no part of the API.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::rc::Rc;
use std::time::Duration;

use microsandbox_protocol::{
    Credit, Exec, ExecLimits, Frame, FrameDecoder, JobCall, JobOperation, Kind, Message, Program,
    StdinMode, StreamId, opening_window,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::{LocalSet, yield_now};
use tokio::time::timeout;

use crate::exec::{Engine, Ground};
use crate::link::{Inbox, Outbox};
use crate::reaper::Reaper;
use crate::sys::{self, io::watch};

/// Streams of the command and of the job that are there.
const COMMAND: StreamId = 1;
const JOB: StreamId = 2;

/// Output that the command may send at first.
const WINDOW: u32 = 1000;

/// No command takes this long to be gone once it was killed.
const GONE: Duration = Duration::from_secs(10);

/// Sets up the process as the agent's is, once, before there are threads.
///
/// # Panics
/// When the kernel refuses.
pub fn begin() {
    sys::process::set_signals().expect("signals can be blocked");
}

/// Hands `bytes` to an agent that has a command on stream 1 and a job, both `cat`, and starts nothing
/// more. Says what it answered.
///
/// # Panics
/// When it sends what was not granted, or what is no frame; when a command is left.
pub fn host(bytes: &[u8]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("there can be an event loop");
    LocalSet::new().block_on(&runtime, play(bytes))
}

async fn play(bytes: &[u8]) -> String {
    let (ours, theirs) = StdUnixStream::pair().expect("there are descriptors");
    for end in [&ours, &theirs] {
        end.set_nonblocking(true).expect("a socket can be told so");
    }
    let host = UnixStream::from_std(ours).expect("there is an event loop");
    let port = Rc::new(watch(theirs.into()).expect("there is an event loop"));
    let reaper = Rc::new(Reaper::new().expect("there are descriptors"));
    let outbox = Outbox::default();
    let engine = engine(&outbox, &reaper);
    let (mut from_agent, mut to_agent) = host.into_split();
    let serve = async {
        let mut inbox = Inbox::new(Rc::clone(&port), FrameDecoder::default());
        let end = loop {
            match inbox.next().await {
                Ok(Some(frame)) => engine.handle(&frame),
                Ok(None) => break "the host has gone".to_owned(),
                Err(error) => break format!("{error:?}"),
            }
            yield_now().await;
        };
        engine.forget_clients();
        engine.signal(nix::sys::signal::Signal::SIGKILL, crate::exec::Whom::All);
        timeout(GONE, reaper.childless()).await.expect("no command is left");
        outbox.flushed().await;
        end
    };
    let send = async {
        // An agent that has had enough reads no more.
        let _sent = to_agent.write_all(bytes).await;
        drop(to_agent);
        std::future::pending::<()>().await;
    };
    let mut answers = FrameDecoder::default();
    let read = async {
        while from_agent.read_buf(answers.buffer()).await.expect("the agent goes on") > 0 {}
    };
    let end = tokio::select! {
        end = serve => end,
        () = outbox.deliver(&port) => unreachable!("it goes on for ever"),
        failed = reaper.run(|| engine.tidy()) => unreachable!("reaping ended: {failed:?}"),
        () = send => unreachable!("it waits for ever"),
        () = read => unreachable!("the agent's end is open"),
    };
    let end: String = end.chars().filter(|c| !c.is_ascii_digit()).collect();
    format!("{end}, answers {:?}", judged(bytes, &mut answers))
}

fn engine(outbox: &Outbox, reaper: &Rc<Reaper>) -> Rc<Engine> {
    let open = |path| File::options().read(true).open(path).expect("every system has it");
    let ground = Ground {
        defaults: RefCell::default(),
        cgroups: None,
        agent: open("/proc/self/exe"),
        null: open("/dev/null"),
        is_root: false,
    };
    let engine = Engine::new(ground, outbox.clone(), Rc::clone(reaper));
    engine.handle(&cat().to_frame(COMMAND));
    let operation = JobOperation::StartOnTerminal { exec: cat(), limits: ExecLimits::default() };
    engine.handle(&JobCall { window: WINDOW, operation }.to_frame(JOB));
    engine.stop_accepting();
    engine
}

fn cat() -> Exec {
    let program = Program::Path("/bin/cat".into());
    Exec { stdin: StdinMode::Pipe, window: WINDOW, ..Exec::new(program) }
}

/// The kinds that were answered, after a look at how much came.
fn judged(sent: &[u8], answers: &mut FrameDecoder) -> BTreeSet<u8> {
    let mut granted = BTreeMap::from([(COMMAND, u64::from(WINDOW))]);
    for frame in frames(sent) {
        if let Ok(Credit { bytes }) = Credit::from_frame(&frame) {
            *granted.entry(frame.stream).or_default() += u64::from(bytes);
        }
        if frame.kind == Kind::JobCall.byte()
            && let Ok(window) = opening_window(&frame)
        {
            *granted.entry(frame.stream).or_default() += u64::from(window);
        }
    }
    let mut kinds = BTreeSet::new();
    while let Some(frame) = answers.next_frame().expect("an agent sends frames") {
        kinds.insert(frame.kind);
        if matches!(Kind::from_byte(frame.kind), Some(Kind::Stdout | Kind::Stderr)) {
            let left = granted.get_mut(&frame.stream).expect("output of a stream that was opened");
            let left_then = left.checked_sub(frame.body.len() as u64);
            *left = left_then.expect("no more than was granted");
        }
    }
    kinds
}

/// Frames of `bytes` up to what is none.
fn frames(bytes: &[u8]) -> Vec<Frame> {
    let mut decoder = FrameDecoder::default();
    decoder.buffer().extend_from_slice(bytes);
    std::iter::from_fn(|| decoder.next_frame().ok().flatten()).collect()
}
