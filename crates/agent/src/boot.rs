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

use microsandbox_protocol::{Become, BootFailed, BootStage, Bootstrap, ExecDefaults, Rebirth};
use nix::errno::Errno;

use crate::error::Error;

pub(crate) use identity::{Identity, set_clock};
pub(crate) use pseudo::prepare;

/// Result of one step of the boot.
type Step<T> = Result<T, Error>;

/// Turns this machine into the sandbox; gives the directory of the writable layer.
///
/// # Errors
/// [`Error::Boot`].
pub(crate) fn become_sandbox(bootstrap: &Bootstrap) -> Step<(OwnedFd, Identity)> {
    // First: nothing may draw random numbers that a sibling from the same template draws too.
    identity::seed(&bootstrap.entropy)?;
    set_clock(bootstrap.wall_clock)?;
    let upper = root::mount(&bootstrap.root)?;
    let open = identity::files_left_open(Path::new(root::LOWER));
    root::switch()?;
    let identity = Identity::assume(&bootstrap.hostname, &open, bootstrap.is_clone)?;
    make_working_directory(&bootstrap.defaults);
    Ok((upper, identity))
}

/// Turns a machine that has served nobody, and is the copy of one that others are copies of, into the
/// sandbox.
///
/// # Errors
/// [`Error::Boot`]; the machine must not go on then.
pub(crate) fn become_one(identity: &mut Identity, orders: &Become) -> Step<()> {
    identity::seed(&orders.entropy)?;
    set_clock(orders.wall_clock)?;
    identity.rename(&orders.hostname)?;
    make_working_directory(&orders.defaults);
    Ok(())
}

/// Turns a machine that was restored into another one than it was.
///
/// # Errors
/// [`Error::Boot`]; the machine must not go on then.
pub(crate) fn become_another(identity: &mut Identity, rebirth: &Rebirth) -> Step<()> {
    identity::seed(&rebirth.entropy)?;
    set_clock(rebirth.wall_clock)?;
    identity.disown_changed_files();
    identity.rename(&rebirth.hostname.clone().unwrap_or_else(|| identity.hostname().to_owned()))?;
    identity::change_boot_id()
}

/// Makes the working directory of commands, as Docker does for an image that has it in no layer. A
/// command that needs it and cannot have it says so itself.
fn make_working_directory(defaults: &ExecDefaults) {
    let cwd = defaults.cwd.as_ref().map(|cwd| Path::new("/").join(cwd));
    if let Some(cwd) = cwd.filter(|cwd| !cwd.exists()) {
        let _ = std::fs::create_dir_all(cwd);
    }
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
