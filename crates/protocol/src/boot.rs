//! From the first frame to a guest that takes commands.
//!
//! The kernel command line holds nothing of the sandbox: all of it comes in [`Bootstrap`], after the
//! kernel and PID 1 are up. That order is what lets one stopped VM serve as a template for many.

use serde::{Deserialize, Serialize};

use crate::code::code;

/// Everything a guest learns about the sandbox it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Wall clock at the moment of sending.
    pub wall_clock: Timestamp,
    /// Fresh random bytes of the host, credited to the guest kernel's generator before any process
    /// runs. At least 32.
    #[serde(with = "serde_bytes")]
    pub entropy: Vec<u8>,
    /// Name of the machine, 1 to 64 bytes (`__NEW_UTS_LEN`).
    pub hostname: String,
    /// What to mount at `/`.
    pub root: Root,
    /// Where every command without its own values begins.
    pub defaults: ExecDefaults,
    /// The writable disk is a copy of another sandbox's, which no machine has used since.
    pub is_clone: bool,
}

/// Stops what the agent sends, at the end of a frame: a machine whose state is saved after [`Held`]
/// can be restored by a host that has seen nothing of this one. Commands go on; they wait once what
/// they write has filled their pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {}

/// The agent sends nothing more until [`Release`], [`Become`] or [`Rebirth`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {}

/// Ends a [`Hold`] in the machine that was saved: everything goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {}

/// Makes a restored machine that has served nobody a sandbox. The first frame it gets; ends the [`Hold`]
/// it was saved in.
///
/// A machine that took commands, was given none and was held is a template for every sandbox of its
/// image. Answered by [`Ready`] before anything else, or by [`BootFailed`], after which the machine must
/// not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Become {
    /// Wall clock at the moment of sending.
    pub wall_clock: Timestamp,
    /// As [`Bootstrap::entropy`].
    #[serde(with = "serde_bytes")]
    pub entropy: Vec<u8>,
    /// As [`Bootstrap::hostname`].
    pub hostname: String,
    /// As [`Bootstrap::defaults`].
    pub defaults: ExecDefaults,
}

/// Makes a restored machine one of its own. The first frame it gets; ends the [`Hold`] it was saved in.
///
/// Streams of the past are over: their commands are killed, as by [`crate::Kill`], and nothing more
/// is sent on them; detached jobs go on. Answered by [`Ready`] before anything else, or by
/// [`BootFailed`], after which the machine must not go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rebirth {
    /// Wall clock at the moment of sending.
    pub wall_clock: Timestamp,
    /// As [`Bootstrap::entropy`].
    #[serde(with = "serde_bytes")]
    pub entropy: Vec<u8>,
    /// The new name of the machine; none: it keeps the one it has.
    pub hostname: Option<String>,
}

/// Time since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// The root file system: a read-only image under a writable layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// EROFS image, mounted read-only.
    pub lower: Disk,
    /// What takes the writes.
    pub upper: Upper,
}

/// The writable layer of the root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upper {
    /// An ext4 disk with the directories `upper` and `work`; writes survive a restart.
    Disk(Disk),
    /// Memory of the guest; writes are gone when it stops.
    Memory {
        /// Most bytes it holds.
        size_bytes: u64,
    },
}

/// A block device of the guest, by its place among the virtio block devices, from 0.
///
/// The n-th device that the host attached is `/dev/vd{a+n}`: Linux names them in the order the
/// driver binds them, which is the order on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk(pub u8);

/// Values for commands that bring none of their own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecDefaults {
    /// Environment, in order; a later name wins.
    pub env: Vec<(String, String)>,
    /// Working directory, made if the image lacks it; none: `/`.
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; none: root.
    pub user: Option<String>,
}

/// The guest takes commands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ready {
    /// Version of the agent's package.
    pub agent_version: String,
    /// `uname -r` of the guest.
    pub kernel_release: String,
    /// How long the guest took, by its own clock.
    pub timings: BootTimings,
}

/// Guest times in microseconds since its kernel started (`CLOCK_BOOTTIME`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimings {
    /// PID 1 began.
    pub init_us: u64,
    /// `Hello` was sent.
    pub hello_us: u64,
    /// `Bootstrap` had arrived.
    pub bootstrap_us: u64,
    /// The root file system was mounted.
    pub mounted_us: u64,
    /// `Ready` was sent.
    pub ready_us: u64,
}

/// The guest could not become the sandbox; it powers off after this frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFailed {
    /// What it was doing.
    pub stage: BootStage,
    /// Error number of the guest kernel, 0 when there is none.
    pub errno: i32,
    /// The object it failed on: a device, a path, a user.
    pub object: String,
}

code! {
    /// Steps from `Bootstrap` to `Ready`, in their order.
    BootStage, fallback Other {
        /// A step this end has no name for.
        Other = 0,
        /// Mounting `/dev`, `/proc`, `/sys` of the initial root.
        PseudoFilesystems = 1,
        /// Crediting the host's entropy.
        Entropy = 2,
        /// Setting the clock.
        Clock = 3,
        /// Mounting the image.
        MountLower = 4,
        /// Mounting the writable layer.
        MountUpper = 5,
        /// Putting the two together.
        MountOverlay = 6,
        /// Making it the root of every process.
        SwitchRoot = 7,
        /// Name, hosts file, loopback.
        Identity = 8,
        /// Control groups for commands.
        Cgroups = 9,
    }
}
