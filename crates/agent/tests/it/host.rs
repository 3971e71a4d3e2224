//! The host's end: starts an agent, speaks the protocol to it, gives up after a deadline.
#![expect(clippy::unwrap_used, reason = "a host that cannot go on fails its test")]

use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus as ProcessStatus};
use std::time::Duration;

use bytes::Bytes;
use microsandbox_protocol::{
    Bootstrap, Credit, Disk, Exec, ExecDefaults, ExecExited, ExecFailed, ExecStarted, FLAG_END,
    Frame, FrameDecoder, Hello, Kind, Message, Program, Ready, Root, StreamId, Timestamp, Upper,
};

/// A frame that does not come within this time fails the test instead of hanging it.
const DEADLINE: Duration = Duration::from_secs(60);

/// An agent that has said `Ready`.
pub(crate) struct Host {
    socket: UnixStream,
    decoder: FrameDecoder,
    agent: Child,
    next_stream: StreamId,
}

/// How a command ended, with all its output.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finished {
    pub exited: ExecExited,
    pub stdout: String,
    pub stderr: String,
}

impl Host {
    /// An agent without defaults for commands.
    pub(crate) fn start() -> Self {
        Self::start_with(ExecDefaults::default())
    }

    /// An agent with these defaults.
    pub(crate) fn start_with(defaults: ExecDefaults) -> Self {
        Self::start_as(Hello::OURS, defaults)
    }

    /// An agent that is met with this hello, which must suit it.
    pub(crate) fn start_as(hello: Hello, defaults: ExecDefaults) -> Self {
        let mut host = Self::connect();
        assert_eq!(Hello::from_frame(&host.frame()), Ok(Hello::OURS));
        host.send(&hello.to_frame());
        let bootstrap = Bootstrap {
            is_clone: false,
            wall_clock: Timestamp { seconds: 0, nanoseconds: 0 },
            entropy: vec![0; 32],
            hostname: "unused".into(),
            root: Root { lower: Disk(0), upper: Upper::Memory { size_bytes: 0 } },
            defaults,
        };
        host.send(&bootstrap.to_frame(0));
        host.message::<Ready>(0);
        host
    }

    /// An agent that has been told nothing yet.
    pub(crate) fn connect() -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(DEADLINE)).unwrap();
        ours.set_write_timeout(Some(DEADLINE)).unwrap();
        let agent = Command::new(env!("CARGO_BIN_EXE_agentd"))
            .arg("serve")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .unwrap();
        Self { socket: ours, decoder: FrameDecoder::default(), agent, next_stream: 1 }
    }

    pub(crate) fn send(&mut self, frame: &Frame) {
        self.send_raw(&[&frame.header()[..], &frame.body].concat());
    }

    pub(crate) fn send_raw(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// The next frame.
    pub(crate) fn frame(&mut self) -> Frame {
        self.next_frame().expect("the agent goes on talking")
    }

    /// The next frame; `None` when the agent has closed the link.
    pub(crate) fn next_frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Some(frame);
            }
            let mut bytes = [0; 64 << 10];
            match self.socket.read(&mut bytes) {
                Ok(0) => return None,
                Ok(len) => self.decoder.buffer().extend_from_slice(&bytes[..len]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}"),
            }
        }
    }

    /// The next frame, which must carry this message on this stream.
    pub(crate) fn message<M: Message>(&mut self, stream: StreamId) -> M {
        let frame = self.frame();
        assert_eq!(frame.stream, stream, "{frame:?}");
        M::from_frame(&frame).unwrap()
    }

    /// Sends a request and gives its stream.
    pub(crate) fn request(&mut self, exec: &Exec) -> StreamId {
        let stream = self.next_stream;
        self.next_stream += 1;
        self.send(&exec.to_frame(stream));
        stream
    }

    /// Sends a request that must start.
    pub(crate) fn begin(&mut self, exec: &Exec) -> StreamId {
        let stream = self.request(exec);
        self.message::<ExecStarted>(stream);
        stream
    }

    /// Runs a command that takes no input to its end.
    pub(crate) fn run(&mut self, exec: &Exec) -> Finished {
        let stream = self.begin(exec);
        self.finish(stream)
    }

    /// Runs a script of the system's shell to its end.
    pub(crate) fn shell(&mut self, script: &str) -> Finished {
        self.run(&shell(script))
    }

    /// Asks for what cannot start.
    pub(crate) fn refused(&mut self, exec: &Exec) -> ExecFailed {
        let stream = self.request(exec);
        self.message(stream)
    }

    /// Collects what is left of a command that runs, granting credit for all of it.
    pub(crate) fn finish(&mut self, stream: StreamId) -> Finished {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            let frame = self.frame();
            assert_eq!(frame.stream, stream, "{frame:?}");
            match Kind::from_byte(frame.kind).unwrap() {
                Kind::Stdout => stdout.extend_from_slice(&frame.body),
                Kind::Stderr => stderr.extend_from_slice(&frame.body),
                Kind::ExecExited => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    let exited = ExecExited::from_frame(&frame).unwrap();
                    return Finished { exited, stdout: text(stdout), stderr: text(stderr) };
                }
                Kind::Credit | Kind::StdinClosed => continue,
                other => panic!("{other:?} does not belong to a running command"),
            }
            let bytes = u32::try_from(frame.body.len()).unwrap();
            self.send(&Credit { bytes }.to_frame(stream));
        }
    }

    /// Reads standard output until it is this text.
    pub(crate) fn expect_stdout(&mut self, stream: StreamId, text: &str) {
        let mut stdout = Vec::new();
        while stdout != text.as_bytes() {
            let frame = self.frame();
            assert_eq!((frame.stream, frame.kind), (stream, Kind::Stdout.byte()), "{frame:?}");
            stdout.extend_from_slice(&frame.body);
            assert!(text.as_bytes().starts_with(&stdout), "{:?}", String::from_utf8_lossy(&stdout));
        }
    }

    /// Sends input that fits the window.
    pub(crate) fn input(&mut self, stream: StreamId, bytes: &'static [u8]) {
        self.send(&Frame::bulk(stream, Kind::Stdin, Bytes::from_static(bytes)));
    }

    /// Ends the input.
    pub(crate) fn end_input(&mut self, stream: StreamId) {
        let frame = Frame::end(stream, Kind::Stdin);
        assert_eq!(frame.flags, FLAG_END);
        self.send(&frame);
    }

    /// Closes the link and waits for the agent to end.
    pub(crate) fn leave(self) -> ProcessStatus {
        let Self { socket, mut agent, .. } = self;
        drop(socket);
        agent.wait().unwrap()
    }
}

/// A script of the system's shell, without input.
pub(crate) fn shell(script: &str) -> Exec {
    command("/bin/sh", &["-c", script])
}

/// A command without input.
pub(crate) fn command(program: &str, args: &[&str]) -> Exec {
    Exec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Exec::new(Program::Path(program.into()))
    }
}
