//! From a bare kernel to a sandbox, in two parts around `Bootstrap`.
//!
//! ```text
//!  prepare   /dev /proc /sys and all below them, loopback, cgroups      same for every sandbox,
//!            ── Hello ──▶   ◀── Bootstrap ──                            part of a template
//!  become    entropy, clock, disks, overlay, new root, name, files      this sandbox
//! ```
//!
//! Whatever needs nothing of `Bootstrap` happens before it, so that a machine restored from a
//! template has it already. Block and network devices are not touched before it.

mod disk;
mod identity;
mod pseudo;
mod root;

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use microsandbox_protocol::{BootFailed, BootStage, Bootstrap, Root};
use nix::errno::Errno;

use crate::error::Error;

pub(crate) use identity::{Identity, set_clock};
pub(crate) use pseudo::prepare;

/// Result of one step of the boot.
type Step<T> = Result<T, Error>;

/// The root file system, put together and made that of every process.
#[derive(Debug)]
pub(crate) struct Mounted {
    root: Root,
    /// The directory of the writable layer.
    upper: OwnedFd,
}

/// Puts the root file system together.
///
/// # Errors
/// [`Error::Boot`].
pub(crate) fn mount(root: &Root) -> Step<Mounted> {
    let upper = root::mount(root)?;
    root::switch()?;
    Ok(Mounted { root: root.clone(), upper })
}

/// Turns this machine into the sandbox, on the root that is `mounted` already, if one is; gives the
/// directory of the writable layer.
///
/// # Errors
/// [`Error::Boot`].
pub(crate) fn become_sandbox(
    bootstrap: &Bootstrap,
    mounted: Option<Mounted>,
) -> Step<(OwnedFd, Identity)> {
    // First: nothing may draw random numbers that a sibling from the same template draws too.
    identity::seed(&bootstrap.entropy)?;
    set_clock(bootstrap.wall_clock)?;
    let mounted = match mounted {
        Some(mounted) if mounted.root == bootstrap.root => mounted,
        Some(_) => return Err(failed(BootStage::MountLower, "another root")(Errno::EBUSY)),
        None => mount(&bootstrap.root)?,
    };
    let identity = Identity::assume(&bootstrap.hostname)?;
    if let Some(cwd) = &bootstrap.defaults.cwd {
        // As Docker does for an image whose working directory is in no layer. A command that needs
        // it and cannot have it says so itself.
        let _ = std::fs::create_dir_all(Path::new("/").join(cwd));
    }
    Ok((mounted.upper, identity))
}

/// What the host is told of a boot that failed.
pub(crate) fn failure(error: &Error) -> BootFailed {
    match error {
        Error::Boot { stage, object, errno } => {
            BootFailed { stage: *stage, errno: *errno as i32, object: object.clone() }
        }
        other => BootFailed { stage: BootStage::Other, errno: 0, object: other.to_string() },
    }
}

/// Names the step and the object of a system call that failed.
fn failed(stage: BootStage, object: impl Into<String>) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Boot { stage, object: object.into(), errno }
}

/// The error number of a failed operation of the standard library.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}
