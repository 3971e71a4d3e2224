//! Both ends of a command's standard streams: the agent's, which never block, and the command's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use microsandbox_protocol::{StdinMode, TerminalSize};
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::sys::stat::Mode;
use nix::unistd::pipe2;
use tokio::io::unix::AsyncFd;

use crate::sys::device;
use crate::sys::io::watch;

/// The agent's ends.
#[derive(Debug)]
pub(crate) struct Ours {
    /// The master of a pseudo terminal, which is standard output too.
    pub terminal: Option<Rc<AsyncFd<OwnedFd>>>,
    /// None: the command reads the terminal or `/dev/null`.
    pub stdin: Option<AsyncFd<OwnedFd>>,
    pub stdout: Rc<AsyncFd<OwnedFd>>,
    /// None on a terminal.
    pub stderr: Option<AsyncFd<OwnedFd>>,
}

/// The command's ends, to be closed once it has them.
#[derive(Debug)]
pub(crate) struct Theirs {
    stdin: Option<OwnedFd>,
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
}

impl Theirs {
    /// Descriptors 0, 1 and 2 of the command.
    pub(crate) fn all<'a>(&'a self, null: BorrowedFd<'a>) -> [BorrowedFd<'a>; 3] {
        let stdin = self.stdin.as_ref().map_or(null, AsFd::as_fd);
        let stderr = self.stderr.as_ref().unwrap_or(&self.stdout);
        [stdin, self.stdout.as_fd(), stderr.as_fd()]
    }

    /// Whether standard input is the command's own.
    pub(crate) const fn has_stdin(&self) -> bool {
        self.stdin.is_some()
    }
}

/// Pipes for a command that runs without a terminal.
///
/// # Errors
/// What the kernel said.
pub(crate) fn pipes(mode: StdinMode) -> io::Result<(Ours, Theirs)> {
    let (theirs_in, stdin) = match mode {
        StdinMode::Null => (None, None),
        StdinMode::Pipe => {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
            (Some(read), Some(never_blocking(write)?))
        }
    };
    let (stdout, theirs_out) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, theirs_err) = pipe2(OFlag::O_CLOEXEC)?;
    let (stdout, stderr) = (Rc::new(never_blocking(stdout)?), never_blocking(stderr)?);
    let ours = Ours { terminal: None, stdin, stdout, stderr: Some(stderr) };
    Ok((ours, Theirs { stdin: theirs_in, stdout: theirs_out, stderr: Some(theirs_err) }))
}

/// A pseudo terminal of this size.
///
/// # Errors
/// What the kernel said.
pub(crate) fn terminal(size: TerminalSize) -> io::Result<(Ours, Theirs)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = open("/dev/ptmx", flags, Mode::empty())?;
    device::set_terminal_size(&master, size)?;
    let terminal = device::open_terminal(&master)?;
    let stdin = Some(terminal.try_clone()?);
    let master = Rc::new(watch(master)?);
    let (copy, stdout) = (Some(Rc::clone(&master)), master);
    let ours = Ours { terminal: copy, stdin: None, stdout, stderr: None };
    Ok((ours, Theirs { stdin, stdout: terminal, stderr: None }))
}

/// Has this end of a pipe never block. The flag belongs to it alone: the command's end goes on
/// blocking, as programs expect.
///
/// # Errors
/// What the kernel said.
pub(crate) fn never_blocking(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    watch(fd)
}
