//! The program that is started in a role, and the roles there are.
//!
//! Roles are told apart by `argv[0]`; what each does is in [`crate::role`].

use std::{
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a process of this crate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Builds a template.
    Builder,
    /// Finds out whether KVM runs guest code.
    Probe,
    /// Owns one sandbox's life.
    Supervisor,
    /// Is the virtual machine, or becomes QEMU.
    Vmm,
}

impl Role {
    pub(crate) const ALL: [Self; 4] = [Self::Builder, Self::Probe, Self::Supervisor, Self::Vmm];

    /// The `argv[0]` that selects the role, also what `ps` shows.
    pub(crate) const fn argv0(self) -> &'static str {
        match self {
            Self::Builder => "msb-builder",
            Self::Probe => "msb-probe",
            Self::Supervisor => "msb-supervisor",
            Self::Vmm => "msb-vmm",
        }
    }
}

/// A program that calls [`crate::init`]: this one or an installed `msb`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(PathBuf);

impl Program {
    /// The program at `path`, which must call [`crate::init`] first in its `main`.
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
