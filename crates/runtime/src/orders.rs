//! What passes between a launcher and its supervisor: orders down, progress up.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
    time::Duration,
};

use microsandbox_protocol::ExecDefaults;
use serde::{Deserialize, Serialize};

use crate::{
    BootTimes, Confinement, DeviceSockets, Devices, ExitRecord, Guest, RunRecord, SandboxDir,
    SandboxLock, SelectedVmm, Templates,
};

/// Everything a supervisor needs to know, in one plain value.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LaunchConfig {
    /// Name of the sandbox, for messages and `ps`.
    pub name: String,
    /// Directory of the sandbox.
    pub dir: PathBuf,
    /// Names this run.
    pub run_id: String,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Memory of the guest, MiB.
    pub memory_mib: u32,
    /// Kernel and initial root.
    pub guest: Guest,
    /// The image's disk, read-only: a VMDK descriptor beside its extents.
    pub lower: PathBuf,
    /// Which VMM, and how.
    pub vmm: SelectedVmm,
    /// More devices; their disks come after the two of the root. A machine that has any boots from the
    /// beginning and cannot be saved.
    pub devices: Devices,
    /// Templates; none: the machine boots from the beginning.
    pub templates: Option<Templates>,
    /// What the machine goes on from.
    pub from: StartingPoint,
    /// File that remembers digests of the guest's and the VMM's files.
    pub digests: PathBuf,
    /// Name of the machine.
    pub hostname: String,
    /// Where commands begin.
    pub defaults: ExecDefaults,
    /// Longest time from launch to ready.
    pub boot_timeout: Duration,
    /// Time the guest gets to end in order when its owner has gone or a signal asks.
    pub stop_timeout: Duration,
    /// Longest time without a command, after which the sandbox is stopped.
    pub idle_timeout: Option<Duration>,
    /// Longest time from ready, after which the sandbox is stopped.
    pub max_duration: Option<Duration>,
    /// How its processes are to be confined.
    pub confinement: Confinement,
    /// Remove the sandbox's directory when the run has ended.
    pub ephemeral: bool,
    /// When the start was asked for, microseconds since 1970; boot times count from here.
    pub asked_at_us: u64,
    /// When the steps before the launch were done.
    pub boot: BootTimes,
    /// Directives for the supervisor's log, as `RUST_LOG` has them.
    pub log: String,
}

impl LaunchConfig {
    /// The templates that it may go on from, if it may.
    pub(crate) fn templates(&self) -> Option<&Templates> {
        self.templates.as_ref().filter(|templates| templates.are_kept())
    }

    /// How many sockets its devices need.
    pub(crate) fn sockets(&self) -> usize {
        let (nets, shares) = self.devices.sockets(self.vmm.kind.share_server());
        nets + shares
    }
}

/// What a machine goes on from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartingPoint {
    /// The image, and a writable disk that nobody has used.
    Fresh(FreshRoot),
    /// The disk as the sandbox has left it.
    OwnDisk,
    /// A copy of another sandbox's disk.
    OthersDisk,
    /// Another sandbox's machine, saved into this folder while it ran, and a copy of its disk. It does not
    /// boot.
    OthersMachine(PathBuf),
}

impl StartingPoint {
    /// The folder of a saved machine.
    pub(crate) fn saved(&self) -> Option<&PathBuf> {
        match self {
            Self::OthersMachine(folder) => Some(folder),
            _ => None,
        }
    }

    /// Whether there is another sandbox that it must not be mistaken for.
    pub(crate) const fn is_clone(&self) -> bool {
        matches!(self, Self::OthersDisk | Self::OthersMachine(_))
    }
}

/// What passes to a supervisor with its orders.
#[derive(Debug)]
pub struct Belongings {
    /// The lock of its sandbox.
    pub lock: SandboxLock,
    /// The other half of [`LaunchConfig::devices`].
    pub sockets: DeviceSockets,
}

/// Those of a sandbox none of whose devices needs a socket.
impl From<SandboxLock> for Belongings {
    fn from(lock: SandboxLock) -> Self {
        Self { lock, sockets: DeviceSockets::default() }
    }
}

impl Belongings {
    /// All descriptors, in the order in which they are handed over.
    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        [self.lock.as_fd()].into_iter().chain(self.sockets.iter()).collect()
    }

    /// What was handed over.
    pub(crate) fn take(config: &LaunchConfig, descriptors: Vec<OwnedFd>) -> io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let lock = descriptors.next().ok_or(io::ErrorKind::UnexpectedEof)?;
        let lock = SandboxLock::from_fd(lock, &SandboxDir::new(&config.dir).lock_path())?;
        Ok(Self { lock, sockets: DeviceSockets::of(&config.devices, descriptors) })
    }
}

/// A root file system that nobody has used: its writable disk is as it was formatted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreshRoot {
    /// The files of the image.
    pub files: Vec<PathBuf>,
    /// Size of the writable disk.
    pub upper_bytes: u64,
}

/// What the supervisor tells its launcher, one line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Progress {
    /// The sandbox takes commands.
    Ready(Box<RunRecord>),
    /// It never did.
    Failed(Box<ExitRecord>),
    /// The orders are for another program. Launchers of every build read this one.
    Refused {
        /// The build that refuses.
        build: String,
        /// What is wrong with them.
        why: String,
    },
}

/// Byte an owner writes to let go of a sandbox.
pub(crate) const DETACH: u8 = b'd';
