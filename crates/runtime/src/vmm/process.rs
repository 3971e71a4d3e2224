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

use super::{DeviceSockets, SelectedVmm, ShareServer, ShareSpec, VmFds, VmSpec, VmmKind, files};
use crate::{
    Applied, Confinement, Layer, Program,
    confine::{
        calls::{self, Calls, Sharing},
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
    /// The other half of its devices.
    pub(crate) sockets: &'a DeviceSockets,
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

/// Descriptors a VMM may have open: its disks, and three for each virtual processor and device.
const DESCRIPTORS: u64 = 1024;

/// Where it serves shares, one more for each file that the guest knows of. As `virtiofsd` has it.
const SHARING_DESCRIPTORS: u64 = 1_000_000;

/// Starts the VMM process of a sandbox, confined; what it says goes to `output`.
pub(crate) fn spawn(
    program: &Program,
    name: &str,
    vm: Vm<'_>,
    fds: &VmFds,
    output: OwnedFd,
) -> io::Result<Spawned> {
    let Vm { vmm, spec, confinement, .. } = vm;
    let (mut command, socket) = program.command(Role::Vmm, name, output)?;
    let profile = Profile { confinement: confinement.clone(), files: files::list(vmm, spec)? };
    let serves = vmm.kind.share_server() == ShareServer::Vmm && !spec.devices.shares.is_empty();
    let descriptors = if serves { SHARING_DESCRIPTORS } else { DESCRIPTORS };
    let surrounded = profile.surround(&mut command, descriptors)?;
    // The command goes with this, and with it the child's end of the pipe that `surrounded` reads.
    let child = tokio::process::Command::from(command).spawn()?;
    let applied = surrounded.applied()?;
    let calls = match vmm.kind {
        VmmKind::Libkrun => {
            let sharing = |share: &ShareSpec| match share.read_only {
                true => Sharing::ReadOnly,
                false => Sharing::Writable,
            };
            Calls::Libkrun { sharing: spec.devices.shares.iter().map(sharing).max() }
        }
        VmmKind::Qemu => Calls::Qemu,
    };
    let order = Order {
        vmm: vmm.clone(),
        spec: spec.clone(),
        supervisor: std::process::id(),
        calls: applied.has(Layer::Seccomp).then_some(calls),
    };
    handover::send(&socket, Role::Vmm, &order, &fds.list())?;
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
    let come_with =
        |order: &Order| VmFds::count(&order.spec.devices, order.vmm.kind.share_server());
    let (order, fds) =
        handover::receive_counted(&socket, Role::Vmm, come_with).map_err(io::Error::other)?;
    let fds = VmFds::take(&order.spec.devices, fds)?;
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
    Ok((order, fds))
}
