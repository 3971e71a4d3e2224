//! The VMM process: takes its orders from the supervisor, locks its doors, becomes the VM.

use std::{
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::ExitCode,
};

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
    signal::Signal,
};
use serde::{Deserialize, Serialize};
use tokio::process::Child;

use super::{SelectedVmm, VmFds, VmSpec};
use crate::{Program, handover, program::Role};

/// What the supervisor sends, with the descriptors of [`VmFds`] in their order.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    vmm: SelectedVmm,
    spec: VmSpec,
    supervisor: u32,
}

/// Starts the VMM process of a sandbox; what it says goes to `output`. The socket that brought its
/// orders closes when it becomes another program.
pub(crate) fn spawn(
    program: &Program,
    name: &str,
    (vmm, spec): (&SelectedVmm, &VmSpec),
    fds: &VmFds,
    output: OwnedFd,
) -> io::Result<(Child, UnixStream)> {
    let (command, socket) = program.command(Role::Vmm, name, output)?;
    let child = tokio::process::Command::from(command).spawn()?;
    let order = Order { vmm: vmm.clone(), spec: spec.clone(), supervisor: std::process::id() };
    let fds = [&fds.agent, &fds.console, &fds.monitor, &fds.memory].map(AsFd::as_fd);
    handover::send(&socket, Role::Vmm, &order, &fds)?;
    Ok((child, socket))
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
    prctl::set_no_new_privs()?;
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    Ok((order, VmFds { agent, console, monitor, memory }))
}
