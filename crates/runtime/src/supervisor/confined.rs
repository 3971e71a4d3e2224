//! What a supervisor is confined to: its sandbox's directory and the start of its VMM, and once the
//! guest takes commands, not even that.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    process::Command,
};

use super::{boot::vm_spec, refuse};
use crate::{
    Applied, LaunchConfig, Layer, SandboxDir, Templates, VmmKind,
    confine::{
        calls::{self, Calls},
        files::{Access, rules},
        process::Profile,
    },
    handover,
    program::Role,
    sys::confine as sys,
    vmm,
};

/// Said behind the label to a process that was confined before it was executed.
const CONFINED: &str = "confined";

/// What a supervisor may open: also all that its VMM may, which cannot be allowed more than what
/// starts it.
///
/// # Errors
/// A disk's descriptor cannot be read.
pub(crate) fn profile(config: &LaunchConfig) -> io::Result<Profile> {
    let dir = SandboxDir::new(&config.dir);
    let mut files = vmm::files::list(&config.vmm, &vm_spec(config))?;
    files.extend(rules(Access::Read, config.templates().map(Templates::path)));
    files.extend(rules(Access::Read, config.from.saved()));
    files.extend(rules(Access::Tree, [dir.path()]));
    if config.ephemeral {
        // To take its own directory away, once that is empty.
        files.extend(rules(Access::RemoveDirectories, dir.path().parent()));
    }
    if config.vmm.kind == VmmKind::Libkrun {
        files.extend(rules(Access::Device, ["/dev/ptmx", "/dev/pts"]));
    }
    Ok(Profile { confinement: config.confinement.clone(), files })
}

/// Confines this process to what the launcher's first letter says. On the thread that `main` runs on,
/// before there is another.
///
/// A program that has threads before it calls [`crate::init`], as an async `main` has, executes itself
/// again: what a thread is confined with holds for all that it executes, but not for its siblings.
pub(crate) fn enter(role: Role) -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let label = arguments.next().unwrap_or_default();
    if arguments.next().as_deref() == Some(OsStr::new(CONFINED)) {
        return Ok(());
    }
    sys::close_inherited()?;
    let alone = fs::read_dir("/proc/self/task")?.count() == 1;
    let control = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (profile, []): (Profile, _) =
        handover::receive(&control, role).map_err(|refusal| match role {
            Role::Supervisor => refuse(&control, refusal),
            _ => io::Error::other(refusal),
        })?;
    profile.enter()?;
    let applied = Applied::expected(&profile.confinement);
    if applied.has(Layer::Seccomp) {
        calls::restrict(Calls::Supervisor)?;
    }
    if alone || !applied.has(Layer::Landlock) {
        return Ok(());
    }
    let mut again = Command::new("/proc/self/exe");
    Err(again.arg0(role.argv0()).arg(label).arg(CONFINED).exec())
}

/// Says why this process cannot take on its role.
pub(crate) fn give_up(error: &io::Error) {
    let _nobody_listens = writeln!(io::stderr(), "confine this process: {error}");
}

/// Gives up starting processes: from here on the guest is talked to.
pub(super) fn start_nothing_more(config: &LaunchConfig) -> io::Result<()> {
    if Applied::expected(&config.confinement).has(Layer::Seccomp) {
        calls::restrict(Calls::SupervisorAtWork)?;
    }
    crate::step::reached("supervisor.confined");
    Ok(())
}
