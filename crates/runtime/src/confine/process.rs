//! Applying a profile: to a process that is being started, or to this one.

use std::{
    io::{self, PipeReader, Read, Write},
    os::unix::process::CommandExt,
    process::Command,
};

use landlock::{RulesetCreated, RulesetCreatedAttr};
use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    sys::{
        prctl,
        resource::{Resource, getrlimit, setrlimit},
    },
    unistd::setsid,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use serde::{Deserialize, Serialize};

use super::{
    Applied, Confinement, Layer,
    files::{self, FileRule},
};
use crate::sys::confine as sys;

/// What a process may open, as plain data.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) confinement: Confinement,
    pub(crate) files: Vec<FileRule>,
}

/// Not 0: a program that takes core dumps through a pipe is started whatever the limit is, unless
/// that is 1 (`core(5)`). No dump fits into one byte either way.
const CORE_BYTES: u64 = 1;

impl Profile {
    fn ruleset(&self) -> io::Result<Option<RulesetCreated>> {
        if !Applied::expected(&self.confinement).has(Layer::Landlock) {
            return Ok(None);
        }
        let mut rules = files::own_program();
        rules.extend_from_slice(&self.files);
        // `no_new_privs` is set in any case, with or without this layer.
        files::ruleset(&rules).map(|ruleset| Some(ruleset.no_new_privs(false)))
    }

    /// Confines the calling thread, and what it starts from now on.
    ///
    /// # Errors
    /// What the kernel said. The process may be confined in part, and should end.
    pub(crate) fn enter(&self) -> io::Result<()> {
        let ruleset = self.ruleset()?;
        give_up_privileges()?;
        restrict(ruleset)
    }

    /// Makes a process that is about to be started begin its life confined, before the first
    /// instruction of its program, with no more than that many open descriptors.
    ///
    /// # Errors
    /// What the kernel said of a listed file.
    pub(crate) fn surround(
        &self,
        command: &mut Command,
        descriptors: u64,
    ) -> io::Result<Surrounded> {
        let mut ruleset = self.ruleset()?;
        let (told, mut tell) = io::pipe()?;
        let wants_namespaces = self.confinement.has(Layer::Namespaces);
        let required = self.confinement.required;
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
        let descriptors = most.min(descriptors);
        // Between fork and exec: system calls on what was made before, no allocation.
        sys::before_exec(command, move || {
            setsid()?;
            sys::close_on_exec_from(FIRST_AFTER_STANDARD)?;
            setrlimit(Resource::RLIMIT_NOFILE, descriptors, descriptors)?;
            let separate = wants_namespaces.then(|| unshare(NAMESPACES));
            match separate {
                Some(Err(errno)) if required => return Err(errno.into()),
                Some(Ok(())) => tell.write_all(&[SEPARATE])?,
                _ => {}
            }
            give_up_privileges()?;
            restrict(ruleset.take())
        });
        Ok(Surrounded { told, expected: Applied::expected(&self.confinement) })
    }
}

const FIRST_AFTER_STANDARD: u32 = 3;

/// What the child writes when it has namespaces of its own.
const SEPARATE: u8 = b'n';

/// Not a process namespace: the VMM would be its init, and the kernel drops the signals by which an
/// init ends itself, so that a crash would look like something else.
///
/// The user namespace maps nobody. Files are judged by the real owner all the same; what the process
/// loses is every capability when its program is executed, and its name.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWUSER
    .union(CloneFlags::CLONE_NEWNS)
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS);

/// A process that will begin its life confined.
#[derive(Debug)]
pub(crate) struct Surrounded {
    told: PipeReader,
    expected: Applied,
}

impl Surrounded {
    /// With what the process was confined. Only after it was started and the command dropped: until
    /// then the pipe has another writer, and this waits.
    pub(crate) fn applied(mut self) -> io::Result<Applied> {
        let mut said = Vec::new();
        self.told.read_to_end(&mut said)?;
        if said == [SEPARATE] {
            self.expected.layers.push(Layer::Namespaces);
            self.expected.layers.sort_unstable();
        }
        Ok(self.expected)
    }
}

/// Needs nothing of the host, and allocates nothing.
fn give_up_privileges() -> io::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, CORE_BYTES, CORE_BYTES)?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    prctl::set_no_new_privs()?;
    Ok(())
}

fn restrict(ruleset: Option<RulesetCreated>) -> io::Result<()> {
    match ruleset.map(RulesetCreated::restrict_self) {
        // Its own error says no more, and would have to be allocated.
        Some(Err(_)) => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Whether an ordinary process can have namespaces of its own here.
pub(super) fn try_namespaces() -> io::Result<()> {
    /// Says from within the child that all went well; nothing is executed.
    const WORKED: Errno = Errno::ECANCELED;
    let mut command = Command::new("/proc/self/exe");
    sys::before_exec(&mut command, || {
        unshare(NAMESPACES)?;
        Err(WORKED.into())
    });
    let tried = command.arg0("msb-namespaces").spawn();
    match tried {
        Err(error) if error.raw_os_error() == Some(WORKED as i32) => Ok(()),
        Err(error) => Err(error),
        Ok(mut child) => child.wait().map(drop),
    }
}
