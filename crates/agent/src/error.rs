//! Why the agent as a whole cannot go on.

use std::io;
use std::path::PathBuf;

use microsandbox_protocol::BootStage;
use nix::errno::Errno;

/// What ends an agent. A command that fails never does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The guest could not become the sandbox.
    #[error("boot the sandbox: {stage:?} failed on {object}")]
    Boot {
        /// What it was doing.
        stage: BootStage,
        /// The object it failed on: a device, a path.
        object: String,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// A file operation failed; its process has told the client how.
    #[error("do a file operation")]
    FileOperation,
    /// No virtio-console port has the agent's name.
    #[error("find a virtio-console port named {name:?} within {waited_ms} ms")]
    FindPort {
        /// The name looked for.
        name: &'static str,
        /// How long it was waited for.
        waited_ms: u64,
    },
    /// The port's device could not be used.
    #[error("open the agent's port {}", path.display())]
    OpenPort {
        /// Device node or directory.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        errno: Errno,
    },
    /// The host speaks something else.
    #[error("talk to the host")]
    Protocol(#[from] microsandbox_protocol::Error),
    /// Bytes could not be read from the host.
    #[error("read from the host")]
    ReadPort(#[source] io::Error),
    /// The event loop or the reaper could not be set up or failed.
    #[error("wait for events")]
    Runtime(#[source] io::Error),
    /// Bytes could not be sent to the host.
    #[error("write to the host")]
    WritePort(#[source] io::Error),
}
