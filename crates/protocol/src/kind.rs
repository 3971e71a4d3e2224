//! Kinds: the byte that names what a frame carries.
//!
//! A number, once released, keeps its meaning and its body for ever; a changed body is a new kind.

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $byte:literal,)*) => {
        /// What a frame carries.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Kind {
            $($(#[$doc])* $name = $byte,)*
        }

        impl Kind {
            /// Every kind this generation knows, in numerical order.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The kind of that byte, or `None` when this generation does not know it.
            pub const fn from_byte(byte: u8) -> Option<Self> {
                match byte {
                    $($byte => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

// Order is numerical: link, life, control of streams, bulk, relay, files, jobs, metrics, guest.
kinds! {
    /// First frame of each end: [`crate::Hello`], a fixed layout.
    Hello = 1,
    /// Host to agent, once: [`crate::Bootstrap`].
    Bootstrap = 2,
    /// Agent to host, once a command can run: [`crate::Ready`].
    Ready = 3,
    /// Agent to host: the root file system could not be put together, [`crate::BootFailed`].
    BootFailed = 4,
    /// Host to agent: end sessions, sync, power off; [`crate::Shutdown`].
    Shutdown = 5,
    /// Agent to host, last frame: everything is on the disks, [`crate::Stopped`].
    Stopped = 6,
    /// Either way: answer with the same token, [`crate::Ping`].
    Ping = 7,
    /// Answer to a ping: [`crate::Pong`].
    Pong = 8,
    /// Answer to a kind the receiver does not know: [`crate::Unsupported`].
    Unsupported = 9,

    /// Host to agent, in a machine that was restored while it took commands: [`crate::Rebirth`].
    Rebirth = 10,
    // 11 and 12 had a meaning before the first release.
    /// Host to agent: say nothing more, [`crate::Hold`].
    Hold = 13,
    /// Agent to host, last frame before a release: nothing more comes, [`crate::Held`].
    Held = 14,
    /// Host to agent: go on after a hold, [`crate::Release`].
    Release = 15,

    /// Client to agent, opens a stream: [`crate::Exec`].
    Exec = 16,
    /// The command runs: [`crate::ExecStarted`].
    ExecStarted = 17,
    /// The command could not be started, the stream is over: [`crate::ExecFailed`].
    ExecFailed = 18,
    /// The command has ended and all its output was sent, the stream is over: [`crate::ExecExited`].
    ExecExited = 19,
    /// Client to agent: send a signal to the command's process group, [`crate::Signal`].
    Signal = 20,
    /// Client to agent: the terminal has another size, [`crate::Resize`].
    Resize = 21,
    /// The receiver of bulk bytes takes that many more: [`crate::Credit`].
    Credit = 22,
    /// Agent to client: the command takes no more input, [`crate::StdinClosed`].
    StdinClosed = 23,
    /// Client to agent: kill the command and forget the stream, [`crate::Kill`].
    Kill = 24,
    /// Client to agent, opens a stream as `Exec` does, with limits: [`crate::LimitedExec`].
    LimitedExec = 25,
    /// Client to agent: the command on a terminal becomes a job, [`crate::Detach`].
    Detach = 26,
    /// Agent to client: what the client sees and types is the job's from here on,
    /// [`crate::JobAttached`].
    JobAttached = 27,
    /// What is known of jobs, their limits and usage too; the stream is over: [`crate::JobDetails`].
    JobDetails = 28,

    /// Bulk, client to agent: bytes for standard input; the end flag closes it.
    Stdin = 32,
    /// Bulk, agent to client: bytes of standard output, or of the terminal.
    Stdout = 33,
    /// Bulk, agent to client: bytes of standard error.
    Stderr = 34,

    /// Relay to client, first frame: [`crate::Welcome`].
    Welcome = 48,
    /// Client to supervisor on stream 0: end the sandbox in order, [`crate::Stop`].
    Stop = 49,
    /// Relay to client on stream 0, last frame: the sandbox has ended, [`crate::Ended`].
    Ended = 50,
    /// Client to supervisor on stream 0: end when nothing is under way any more, [`crate::Drain`].
    Drain = 51,
    /// Client to supervisor, opens a stream: the guest is to stand still, [`crate::Pause`].
    Pause = 52,
    /// Client to supervisor, opens a stream: the guest is to go on, [`crate::Resume`].
    Resume = 53,
    /// Client to supervisor, opens a stream: the machine is to be saved, [`crate::Save`].
    Save = 54,
    /// What became of that, the stream is over: [`crate::Concluded`].
    Concluded = 55,

    /// Client to agent, opens a stream that goes on like a command's: [`crate::FileCall`].
    FileCall = 64,

    /// Client to agent, opens a stream: [`crate::JobCall`].
    JobCall = 72,
    /// What is known of a job, the stream is over: [`crate::JobInfo`].
    JobInfo = 73,
    /// Every job there is, the stream is over: [`crate::Jobs`].
    Jobs = 74,
    /// Agent to client, among output: some of it is missing, [`crate::JobGap`].
    JobGap = 75,
    /// There is no such job, the stream is over: [`crate::JobUnknown`].
    JobUnknown = 76,

    /// Client to agent, opens a stream: [`crate::MetricsCall`].
    MetricsCall = 80,
    /// What the guest uses, the stream is over: [`crate::Metrics`].
    Metrics = 81,
    /// Host to agent on stream 0: the wall clock is to be this, [`crate::SetClock`].
    SetClock = 82,
    /// Host to agent, in a machine that was restored and has served nobody: [`crate::Become`].
    Become = 83,
}

impl Kind {
    /// The byte on the wire.
    pub const fn byte(self) -> u8 {
        self as u8
    }

    /// Whether a frame of this kind, from a client, begins a command or works on files.
    pub const fn begins_work(self) -> bool {
        matches!(self, Self::Exec | Self::FileCall | Self::JobCall | Self::LimitedExec)
    }

    /// Whether a frame of this kind, from the agent, is the last of its stream.
    pub const fn ends_stream(self) -> bool {
        matches!(
            self,
            Self::Concluded
                | Self::ExecExited
                | Self::ExecFailed
                | Self::JobDetails
                | Self::JobInfo
                | Self::JobUnknown
                | Self::Jobs
                | Self::Metrics
                | Self::Unsupported
        )
    }

    /// Whether the body is bytes to pass on, counted against the stream's credit.
    pub const fn is_bulk(self) -> bool {
        matches!(self, Self::Stdin | Self::Stdout | Self::Stderr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_again_by_its_byte() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_byte(kind.byte()), Some(*kind));
        }
        assert_eq!(Kind::from_byte(0), None);
        assert_eq!(Kind::from_byte(255), None);
    }
}
