//! The port to the host: finding it, and the conversation before any event loop runs.
//!
//! A virtio-console port reads as ended and hung up while no host has it open
//! (`port_fops_read`, `port_fops_poll` in `drivers/char/virtio_console.c`). Until `Bootstrap` that is
//! no end: a machine saved as a template is opened by another host later. Only edges tell the two
//! apart without spinning, hence an edge-triggered epoll and no event loop yet.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use microsandbox_protocol::{
    Bootstrap, Frame, FrameDecoder, GENERATION, Hello, Kind, Message, PORT_NAME, Ping, Pong,
    Unsupported, negotiate,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use nix::sys::stat::Mode;
use nix::unistd::write;

use crate::error::Error;
use crate::sys;

/// Time for the console device to announce its ports; it does so within milliseconds of its probe.
const FIND: Duration = Duration::from_secs(10);

/// Where the kernel lists ports (`virtio_console.c`, class `virtio-ports`).
const PORTS: &str = "/sys/class/virtio-ports";

/// Opens the port named [`PORT_NAME`], waiting for the kernel to announce it.
///
/// # Errors
/// [`Error::FindPort`] after ten seconds, [`Error::OpenPort`].
pub(crate) fn open_port() -> Result<OwnedFd, Error> {
    let path = find_port()?;
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    open(&path, flags, Mode::empty()).map_err(|errno| Error::OpenPort { path, errno })
}

fn find_port() -> Result<PathBuf, Error> {
    let ports = Path::new(PORTS);
    let failed = |errno| Error::OpenPort { path: ports.to_owned(), errno };
    // It is there by now, as a rule.
    if let Some(device) = named_port(ports) {
        return Ok(device);
    }
    // Listening before looking again: a port that comes in between is announced to us.
    let events = DeviceEvents::listen().map_err(failed)?;
    let deadline = Instant::now() + FIND;
    loop {
        if let Some(device) = named_port(ports) {
            return Ok(device);
        }
        if !events.wait(deadline).map_err(failed)? {
            let waited_ms = u64::try_from(FIND.as_millis()).unwrap_or(u64::MAX);
            return Err(Error::FindPort { name: PORT_NAME, waited_ms });
        }
    }
}

/// The device, such as `/dev/vport0p1`, whose name file holds [`PORT_NAME`].
fn named_port(ports: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(ports).ok()?.flatten();
    let named = |entry: &fs::DirEntry| {
        fs::read_to_string(entry.path().join("name")).is_ok_and(|name| name.trim() == PORT_NAME)
    };
    entries.into_iter().find(named).map(|entry| Path::new("/dev").join(entry.file_name()))
}

/// The kernel's announcements of devices (`lib/kobject_uevent.c`).
struct DeviceEvents(OwnedFd);

impl DeviceEvents {
    fn listen() -> Result<Self, Errno> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        let (any_pid, kernel_group) = (0, 1);
        bind(socket.as_raw_fd(), &NetlinkAddr::new(any_pid, kernel_group))?;
        Ok(Self(socket))
    }

    /// Waits until something was announced; false at the deadline.
    fn wait(&self, deadline: Instant) -> Result<bool, Errno> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&self.0, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = EpollTimeout::try_from(left).unwrap_or(EpollTimeout::MAX);
        let announced = epoll.wait(&mut [EpollEvent::empty()], timeout)? > 0;
        let mut event = [0; 4096];
        let socket = self.0.as_raw_fd();
        while recv(socket, &mut event, MsgFlags::empty()).is_ok() {}
        Ok(announced)
    }
}

/// What an end of file on the port means before `Bootstrap`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// Another host will come.
    Passing,
    /// There is none any more.
    Final,
}

/// The conversation until `Bootstrap`, and again after the last command.
#[derive(Debug)]
pub(crate) struct Handshake {
    port: OwnedFd,
    edges: Epoll,
    decoder: FrameDecoder,
    absence: Absence,
}

/// What the host wants first.
#[derive(Debug)]
pub(crate) enum Start {
    /// Become this sandbox.
    Boot(Box<Bootstrap>),
    /// End without having been one.
    Shutdown,
}

impl Handshake {
    /// Talks over `port`.
    ///
    /// # Errors
    /// [`Error::ReadPort`] when it cannot be waited for.
    pub(crate) fn new(port: OwnedFd, absence: Absence) -> Result<Self, Error> {
        let edges = || {
            fcntl(&port, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            let edges = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
            edges.add(&port, EpollEvent::new(events, 0)).map(|()| edges)
        };
        let edges = edges().map_err(|errno: Errno| Error::ReadPort(errno.into()))?;
        Ok(Self { port, edges, decoder: FrameDecoder::default(), absence })
    }

    /// Says `Hello`, which the port takes once a host has it open.
    ///
    /// # Errors
    /// [`Error::WritePort`].
    pub(crate) fn greet(&self) -> Result<(), Error> {
        self.send(&Hello::OURS.to_frame())
    }

    /// Waits for `Bootstrap`, answering what may come before it.
    ///
    /// # Errors
    /// [`Error::ReadPort`], [`Error::WritePort`], and [`Error::Protocol`] when the host speaks
    /// nothing that this agent does.
    pub(crate) fn start(&mut self) -> Result<Start, Error> {
        loop {
            let frame = self.receive()?;
            match Kind::from_byte(frame.kind) {
                Some(Kind::Hello) => {
                    let agreed = negotiate(Hello::OURS, Hello::from_frame(&frame)?)?;
                    debug_assert_eq!(agreed, GENERATION, "only one generation exists");
                }
                Some(Kind::Bootstrap) => {
                    return Ok(Start::Boot(Box::new(Bootstrap::from_frame(&frame)?)));
                }
                Some(Kind::Ping) => {
                    let Ping { token } = Ping::from_frame(&frame)?;
                    self.send(&Pong { token }.to_frame(frame.stream))?;
                }
                Some(Kind::Shutdown) => return Ok(Start::Shutdown),
                _ => self.send(&Unsupported { kind: frame.kind }.to_frame(frame.stream))?,
            }
        }
    }

    /// Sends one frame, waiting for the port to take it.
    ///
    /// # Errors
    /// [`Error::WritePort`].
    pub(crate) fn send(&self, frame: &Frame) -> Result<(), Error> {
        let bytes = [&frame.header()[..], &frame.body].concat();
        let mut bytes = &bytes[..];
        while !bytes.is_empty() {
            match write(&self.port, bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(Errno::EAGAIN) => self.wait().map_err(Error::WritePort)?,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::WritePort(errno.into())),
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<Frame, Error> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match sys::io::read_into(&self.port, self.decoder.buffer()) {
                Ok(0) if self.absence == Absence::Final => {
                    return Err(Error::ReadPort(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(0) | Err(Errno::EAGAIN) => self.wait().map_err(Error::ReadPort)?,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::ReadPort(errno.into())),
            }
        }
    }

    /// Returns when something about the port has changed.
    fn wait(&self) -> io::Result<()> {
        match self.edges.wait(&mut [EpollEvent::empty()], EpollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The port and what was received beyond the last frame.
    pub(crate) fn into_parts(self) -> (OwnedFd, FrameDecoder) {
        (self.port, self.decoder)
    }
}

/// Sends one last frame and returns once the host has it.
///
/// A port that blocks gives a write back only after the host has taken the bytes
/// (`__send_to_port` in `drivers/char/virtio_console.c`), so the machine may end right after.
///
/// # Errors
/// [`Error::WritePort`].
pub(crate) fn send_last<M: Message>(port: impl AsFd, message: &M) -> Result<(), Error> {
    let frame = message.to_frame(0);
    let bytes = [&frame.header()[..], &frame.body].concat();
    let written = fcntl(port.as_fd(), FcntlArg::F_SETFL(OFlag::empty()))
        .and_then(|_| write(port.as_fd(), &bytes));
    match written {
        Ok(len) if len == bytes.len() => Ok(()),
        Ok(_) => Err(Error::WritePort(io::ErrorKind::WriteZero.into())),
        Err(errno) => Err(Error::WritePort(errno.into())),
    }
}
