//! Roles: the same program is facade, supervisor, VMM and KVM probe, told apart by `argv[0]`.
//!
//! A program that calls [`init`] first in `main` serves as all of them and ships as one file. One
//! that does not needs an `msb` to run its sandboxes.

use std::{
    ffi::OsStr,
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{supervisor, vmm};

/// What a process of this crate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Finds out whether KVM runs guest code.
    Probe,
    /// Owns one sandbox's life.
    Supervisor,
    /// Is the virtual machine, or becomes QEMU.
    Vmm,
}

impl Role {
    const ALL: [Self; 3] = [Self::Probe, Self::Supervisor, Self::Vmm];

    /// The `argv[0]` that selects the role, also what `ps` shows.
    const fn argv0(self) -> &'static str {
        match self {
            Self::Probe => "msb-probe",
            Self::Supervisor => "msb-supervisor",
            Self::Vmm => "msb-vmm",
        }
    }

    fn run(self) -> ExitCode {
        match self {
            Self::Probe => vmm::probe::run(),
            Self::Supervisor => supervisor::run(),
            Self::Vmm => vmm::process::run(),
        }
    }
}

/// Set once [`init`] has run in this process: it may start itself in a role.
static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Turns the process into a supervisor or VMM where it was started as one; returns otherwise.
///
/// Call it first in `main`, before threads, argument parsing or output. In a role it never returns.
pub fn init() {
    INITIALISED.store(true, Ordering::Relaxed);
    let argv0 = std::env::args_os().next().unwrap_or_default();
    let role = Role::ALL.into_iter().find(|role| argv0 == OsStr::new(role.argv0()));
    if let Some(role) = role {
        // On a thread of its own, because `main` may be async already and a supervisor needs a runtime
        // that is not inside another. The thread lives as long as the process.
        let ran = std::thread::spawn(move || role.run()).join();
        let failed = !matches!(ran, Ok(code) if code == ExitCode::SUCCESS);
        #[expect(
            clippy::disallowed_methods,
            clippy::exit,
            reason = "a role is the whole life of its process; its guards have run"
        )]
        std::process::exit(i32::from(failed));
    }
}

/// This program as one that can be started in a role, if [`init`] ran in it.
pub fn own_program() -> Option<Program> {
    let able = INITIALISED.load(Ordering::Relaxed);
    able.then(|| Program(PathBuf::from("/proc/self/exe")))
}

/// A program that calls [`init`]: this one or an installed `msb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(PathBuf);

impl Program {
    /// The program at `path`, which must call [`init`] first in its `main`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A command that starts it in `role`, with the far end of the returned socket as its standard
    /// input and `output` as both its outputs.
    ///
    /// `label` is shown by `ps` after the role's name. The environment is empty.
    pub(crate) fn command(
        &self,
        role: Role,
        label: &str,
        output: OwnedFd,
    ) -> io::Result<(Command, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&self.0);
        command
            .arg0(role.argv0())
            .arg(label)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(output.try_clone()?))
            .stderr(Stdio::from(output));
        Ok((command, ours))
    }
}
