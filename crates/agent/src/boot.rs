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

use microsandbox_protocol::{BootFailed, BootStage, Bootstrap};
use nix::errno::Errno;

use crate::error::Error;

pub(crate) use pseudo::prepare;

/// Result of one step of the boot.
type Step<T> = Result<T, Error>;

/// Turns this machine into the sandbox; gives the directory of the writable layer.
///
/// # Errors
/// [`Error::Boot`].
pub(crate) fn become_sandbox(bootstrap: &Bootstrap) -> Step<OwnedFd> {
    // First: nothing may draw random numbers that a sibling from the same template draws too.
    identity::seed(&bootstrap.entropy)?;
    identity::set_clock(bootstrap.wall_clock)?;
    let upper = root::mount(&bootstrap.root)?;
    root::switch()?;
    identity::assume(&bootstrap.hostname)?;
    if let Some(cwd) = &bootstrap.defaults.cwd {
        // As Docker does for an image whose working directory is in no layer. A command that needs
        // it and cannot have it says so itself.
        let _ = std::fs::create_dir_all(Path::new("/").join(cwd));
    }
    Ok(upper)
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
