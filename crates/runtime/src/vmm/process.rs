//! The VMM process: takes its orders from the supervisor, locks its doors, becomes the VM.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
};

use nix::sys::{prctl, signal::Signal};
use serde::{Deserialize, Serialize};
use tokio::process::Child;

use super::{SelectedVmm, VmFds, VmSpec, VmmKind, files};
use crate::{
    Applied, Confinement, Layer, Program,
    confine::{
        calls::{self, Calls},
        process::Profile,
    },
    handover,
    program::Role,
    step,
};

/// What the supervisor sends, with the descriptors of [`VmFds`] in their order.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    vmm: SelectedVmm,
    spec: VmSpec,
    supervisor: u32,
    /// The calls that are left to it; none: all.
    calls: Option<Calls>,
}

/// What is started, and how it is confined.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vm<'a> {
    pub(crate) vmm: &'a SelectedVmm,
    pub(crate) spec: &'a VmSpec,
    pub(crate) confinement: &'a Confinement,
}

/// A VMM process that has its orders.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) applied: Applied,
    /// Closes when the process becomes the VMM's program.
    pub(crate) becoming: UnixStream,
}

/// Starts the VMM process of a sandbox, confined; what it says goes to `output`.
pub(crate) fn spawn(
    program: &Program,
    name: &str,
    vm: Vm<'_>,
    fds: &VmFds,
    output: OwnedFd,
) -> io::Result<Spawned> {
    let Vm { vmm, spec, confinement } = vm;
    let (mut command, socket) = program.command(Role::Vmm, name, output)?;
    let profile = Profile { confinement: confinement.clone(), files: files::list(vmm, spec)? };
    let surrounded = profile.surround(&mut command)?;
    // The command goes with this, and with it the child's end of the pipe that `surrounded` reads.
    let child = tokio::process::Command::from(command).spawn()?;
    let applied = surrounded.applied()?;
    let calls = match vmm.kind {
        VmmKind::Libkrun => Calls::Libkrun,
        VmmKind::Qemu => Calls::Qemu,
    };
    let order = Order {
        vmm: vmm.clone(),
        spec: spec.clone(),
        supervisor: std::process::id(),
        calls: applied.has(Layer::Seccomp).then_some(calls),
    };
    let fds = [&fds.agent, &fds.console, &fds.monitor, &fds.memory].map(AsFd::as_fd);
    handover::send(&socket, Role::Vmm, &order, &fds)?;
    Ok(Spawned { child, applied, becoming: socket })
}

/// The role: never returns when the VM runs.
pub(crate) fn run() -> ExitCode {
    let problem = match take_order() {
        Ok((order, fds)) => order.vmm.enter(&order.spec, fds),
        Err(error) => format!("prepare the VMM process: {error}"),
    };
    // The supervisor keeps the last of this stream for the exit record.
    let _nobody_listens = writeln!(io::stderr(), "{problem}");
    ExitCode::FAILURE
}

fn take_order() -> io::Result<(Order, VmFds)> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (order, [agent, console, monitor, memory]): (Order, _) =
        handover::receive(&socket, Role::Vmm).map_err(io::Error::other)?;
    // A VM never outlives its supervisor, however that ends.
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if nix::unistd::getppid().as_raw().cast_unsigned() != order.supervisor {
        return Err(io::Error::other("the supervisor is gone"));
    }
    prctl::set_dumpable(false)?;
    if let Some(calls) = order.calls {
        calls::restrict(calls)?;
    }
    step::reached("vmm.confined");
    Ok((order, VmFds { agent, console, monitor, memory }))
}
