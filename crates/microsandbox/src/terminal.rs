//! The terminal of this process: raw mode with a way back, its size, and what is typed.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use microsandbox_runtime::{watch_readable, wire::TerminalSize};
use rustix::{
    fs::{Mode, OFlags, open},
    io::{Errno, read},
    stdio::stdin,
    termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr},
};
use tokio::io::unix::AsyncFd;

/// The terminal that standard input is.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// A description of its own: that it does not block concerns nobody else who has the terminal.
    input: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// Opens it; `None` when standard input is no terminal.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn open() -> io::Result<Option<Self>> {
        if !isatty(stdin()) {
            return Ok(None);
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        // A terminal that belongs to another user, as after `su`, opens by its general name alone.
        let opened = open("/proc/self/fd/0", flags, Mode::empty())
            .or_else(|_| open("/dev/tty", flags, Mode::empty()))?;
        let input = watch_readable(opened)?;
        Ok(Some(Self { input }))
    }

    /// Its size now.
    pub(crate) fn size(&self) -> io::Result<TerminalSize> {
        let size = tcgetwinsize(&self.input)?;
        Ok(TerminalSize { rows: size.ws_row, columns: size.ws_col })
    }

    /// Passes every key on as it is typed until the guard is dropped.
    pub(crate) fn raw(&self) -> io::Result<RawMode> {
        let terminal = self.input.as_fd().try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        let mode = RawMode { terminal, before };
        mode.enter()?;
        Ok(mode)
    }

    /// Reads what was typed; 0 when the terminal is gone. Cancel safe.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.input.readable().await?;
            match read(&self.input, &mut *buffer) {
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                // The other side of a pseudo terminal has closed.
                Err(Errno::IO) => return Ok(0),
                read => return Ok(read?),
            }
        }
    }
}

/// Puts the terminal back as it was when dropped, be it by a panic.
#[derive(Debug)]
pub(crate) struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Enters raw mode, again where somebody has changed it meanwhile.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let mut raw = self.before.clone();
        raw.make_raw();
        Ok(tcsetattr(&self.terminal, OptionalActions::Now, &raw)?)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(error) = tcsetattr(&self.terminal, OptionalActions::Now, &self.before) {
            tracing::debug!(%error, "the terminal is gone");
        }
    }
}
