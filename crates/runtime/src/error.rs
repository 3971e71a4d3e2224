//! What can go wrong between the facade and a running guest.

use std::{io, path::PathBuf};

use microsandbox_protocol::{ExecFailed, FileFailed, FileFailure};

use crate::{DeviceFault, ExitRecord, Layer, VmmKind, handover::BUILD};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation on a sandbox's processes stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sandbox ended before it took commands; `exit.json` holds the same record.
    #[error("boot sandbox {name:?}: {}", record.reason)]
    Boot {
        /// Name of the sandbox.
        name: String,
        /// How it ended.
        record: Box<ExitRecord>,
    },
    /// The guest that this program carries has other bytes than it was built with.
    #[error("unpack the guest that this program carries to {}: it is damaged", path.display())]
    CarriedGuest {
        /// Where it was to go; removed again.
        path: PathBuf,
    },
    /// The link to a sandbox closed while an answer was due.
    #[error("hear from the sandbox: its link closed during {during}")]
    Closed {
        /// What was waited for.
        during: &'static str,
    },
    /// The sandbox's socket could not be reached.
    #[error("connect to the sandbox at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
    /// The VMM cannot have the devices that the machine is to have.
    #[error("give the sandbox its devices")]
    Devices {
        /// Why.
        #[source]
        source: DeviceFault,
    },
    /// The host's disk has no room for what was asked for. The sandbox is as it was.
    #[error("{action} the sandbox: {detail}")]
    DiskFull {
        /// Verb of the operation.
        action: &'static str,
        /// What could not be written.
        detail: String,
    },
    /// A command could not be started in the guest.
    #[error("start {program:?} in the guest: {:?} on {:?} (errno {})", failed.failure, failed.object, failed.errno)]
    Exec {
        /// The program that was asked for.
        program: String,
        /// What the agent reported.
        failed: ExecFailed,
    },
    /// A file operation in the guest failed.
    #[error("{}", explain(.failed))]
    FileCall {
        /// What the agent reported.
        failed: FileFailed,
    },
    /// The process in the guest that did a file operation ended before it had answered.
    #[error("do a file operation in the guest: its process ended with {code}{}", told(.message))]
    FileProcess {
        /// Its exit code, or 128 and the number of a signal.
        code: i32,
        /// What it said.
        message: String,
    },
    /// A file of the sandbox could not be read or written.
    #[error("{action} {}", path.display())]
    File {
        /// Verb of the failed operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
    /// The VMM of a sandbox cannot do what was asked for.
    #[error("{action} the sandbox: its VMM, {vmm}, cannot")]
    Incapable {
        /// Verb of the operation.
        action: &'static str,
        /// Which VMM it is.
        vmm: String,
    },
    /// Another process holds the sandbox.
    #[error("lock {}: another process holds it", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The guest kernel or its initial root is not there.
    #[error("find the guest {what} at {}", path.display())]
    MissingGuest {
        /// `kernel` or `initramfs`.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
    },
    /// The program that supervises sandboxes could not be started.
    #[error("start the supervisor {}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
    /// The program that was to supervise is of another build than this one.
    #[error("have {} supervise the sandbox: it is microsandbox {build} and refuses: {why}", program.display())]
    ProgramRefused {
        /// The program.
        program: PathBuf,
        /// Its version and digest.
        build: String,
        /// What it said.
        why: String,
    },
    /// The program that was to supervise ended without a word, as one that is no microsandbox does.
    #[error("have {} supervise the sandbox: it ended without a word ({ended})", program.display())]
    ProgramSilent {
        /// The program.
        program: PathBuf,
        /// How it ended.
        ended: String,
    },
    /// A sandbox could not be made to stand still, or to go on. It is as it was.
    #[error("{action} the sandbox: {detail}")]
    Standstill {
        /// Verb of the operation.
        action: &'static str,
        /// What happened.
        detail: String,
    },
    /// The peer on a link does not speak the protocol.
    #[error("speak with the {peer}")]
    Protocol {
        /// Who is at the other end.
        peer: &'static str,
        /// What it got wrong.
        #[source]
        source: microsandbox_protocol::Error,
    },
    /// There is no such job, or none any more.
    #[error("find job {id}: the sandbox has no such job")]
    UnknownJob {
        /// Its number.
        id: u64,
    },
    /// The command's arguments and environment do not fit one frame.
    #[error("send the command: arguments and environment exceed {limit} bytes")]
    TooLong {
        /// Most bytes they may take.
        limit: usize,
    },
    /// A system call failed that has no file or peer of its own.
    #[error("{action}")]
    System {
        /// What was attempted.
        action: &'static str,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
    /// The agent in the guest is of a version that does not know what was asked for.
    #[error("ask the guest's agent, version {agent}: it does not know requests of kind {kind}")]
    Unsupported {
        /// Kind byte of the request.
        kind: u8,
        /// Version of the agent.
        agent: String,
    },
    /// The host lacks a layer of confinement that is required, or that something cannot do without.
    #[error("confine the sandbox with {layer}: {why}")]
    Unconfined {
        /// What is lacking.
        layer: Layer,
        /// Why.
        why: String,
    },
    /// The wanted VMM cannot run on this machine.
    #[error("use {vmm}: {why}")]
    VmmUnavailable {
        /// The driver that was asked for.
        vmm: VmmKind,
        /// What is missing.
        why: String,
    },
}

impl Error {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::CarriedGuest { .. } => {
                Some("build this program again, or get another copy of it".into())
            }
            Self::Locked { .. } => {
                Some("stop the sandbox first, or wait for the other command".into())
            }
            Self::MissingGuest { what: "kernel", .. } => {
                Some("run `cargo xtask setup`, or name a kernel with MSB_KERNEL".into())
            }
            Self::MissingGuest { .. } => Some("run `cargo xtask setup`".into()),
            Self::ProgramRefused { .. } | Self::ProgramSilent { .. } => Some(format!(
                "install the msb of microsandbox {BUILD} and name it with MSB_PATH, or call \
                 `microsandbox::reexec::init()` first in `main`"
            )),
            Self::Unsupported { .. } => {
                Some("start the sandbox again: it then boots the installed agent".into())
            }
            Self::VmmUnavailable { vmm: VmmKind::Libkrun, .. } => {
                Some("use MSB_VMM=qemu, or a host whose KVM works (`msb doctor`)".into())
            }
            Self::VmmUnavailable { vmm: VmmKind::Qemu, .. } => {
                Some("install QEMU: apt-get install qemu-system-x86".into())
            }
            Self::Unconfined { .. } => Some(
                "mend what `msb doctor` says of it, or do without: MSB_CONFINEMENT=auto".into(),
            ),
            Self::Boot { record, .. } => record.reason.hint(),
            Self::DiskFull { .. } => {
                Some("make room on the file system that holds MSB_HOME".into())
            }
            _ => None,
        }
    }

    pub(crate) fn file(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }

    pub(crate) fn system(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// What failed, on which path, in one line. Errors of the guest have no source on the host.
fn explain(failed: &FileFailed) -> String {
    let FileFailed { failure, errno, action, path } = failed;
    let path = String::from_utf8_lossy(path);
    let why = (*errno != 0).then(|| io::Error::from_raw_os_error(*errno).to_string());
    // "No such file or directory (os error 2)": the number is data, not news.
    let why = why.map(|why| why.split(" (os error").next().unwrap_or_default().to_owned());
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    match failure {
        FileFailure::Changed => {
            format!("{action} {path} in the guest: it became shorter meanwhile")
        }
        FileFailure::RefusedMember => format!("unpack {path} in the guest: {action}"),
        _ if path.is_empty() => format!("{action} in the guest{why}"),
        _ => format!("{action} {path} in the guest{why}"),
    }
}

fn told(message: &str) -> String {
    match message.trim() {
        "" => String::new(),
        message => format!(": {message}"),
    }
}

/// An error with its causes, on one line.
pub fn explained(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
