//! Signals that ask msb to end, as a stream the commands can wait on.

use std::{fmt, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A signal that asks msb to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The terminal is gone.
    Hangup,
    /// Ctrl-C.
    Keyboard,
    /// Somebody asks politely.
    Terminate,
}

impl Interrupt {
    /// Its number, on every Linux.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::Hangup => 1,
            Self::Keyboard => 2,
            Self::Terminate => 15,
        }
    }

    /// What a shell shows for a process that it ended.
    pub(crate) const fn exit_code(self) -> u8 {
        128 + self.number()
    }
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ended by signal {}", self.number())
    }
}

/// A command gave up because a signal asked it to: an end that needs no words.
impl std::error::Error for Interrupt {}

/// Catches the signals from the moment it is made.
#[derive(Debug)]
pub(crate) struct Interrupts {
    hangup: Signal,
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    /// Begins to catch them.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for the next one. Cancel safe.
    pub(crate) async fn next(&mut self) -> Interrupt {
        tokio::select! {
            _ = self.hangup.recv() => Interrupt::Hangup,
            _ = self.interrupt.recv() => Interrupt::Keyboard,
            _ = self.terminate.recv() => Interrupt::Terminate,
        }
    }
}
