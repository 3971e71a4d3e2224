//! The libkrun driver: the VM runs in this very process.
//!
//! Needs KVM. libkrun has no memory snapshot and, on Linux, no shutdown event: a guest is stopped
//! through its agent, and the VMM process ends with it.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::{pty::openpty, sys::termios};

use super::{Capabilities, DiskFormat, Driver, Enter, VmFds, VmSpec, VmmKind};
use crate::sys::krun::{Context, KrunDisk, log_to_stderr};

/// libkrun, linked into this program.
#[derive(Debug)]
pub(crate) struct Libkrun;

impl Driver for Libkrun {
    fn kind(&self) -> VmmKind {
        VmmKind::Libkrun
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: false,
            memory_snapshot: false,
            max_devices: MAX_DEVICES,
            max_vcpus: 64,
            shares: self.kind().share_server(),
        }
    }

    fn open_console(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        // libkrun makes a port the kernel's console only when it is a terminal.
        let pty = openpty(None, None)?;
        let mut raw = termios::tcgetattr(&pty.slave)?;
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&pty.slave, termios::SetArg::TCSANOW, &raw)?;
        Ok((pty.master, pty.slave))
    }

    fn has_monitor(&self) -> bool {
        false
    }
}

impl Enter for Libkrun {
    fn enter(&self, spec: &VmSpec, fds: VmFds) -> String {
        let ready = log_to_stderr().and_then(|()| configure(spec, &fds));
        ready.map_or_else(|problem| problem, Context::start)
    }
}

fn configure(spec: &VmSpec, fds: &VmFds) -> Result<Context, String> {
    let context = Context::create()?;
    context.set_machine(spec.vcpus, spec.memory_mib)?;
    context.split_irqchip()?;
    context.disable_implicit_devices()?;
    let command_line = spec.command_line(EARLY_CONSOLE);
    context.set_kernel(utf8(&spec.kernel)?, utf8(&spec.initramfs)?, &command_line)?;
    for disk in &spec.devices.disks {
        context.add_disk(&KrunDisk {
            id: &disk.id,
            path: utf8(&disk.path)?,
            vmdk: disk.format == DiskFormat::Vmdk,
            read_only: disk.read_only,
        })?;
    }
    for share in &spec.devices.shares {
        context.add_share(&share.tag, utf8(&share.path)?, share.read_only)?;
    }
    if let (Some(net), Some(socket)) = (spec.devices.net, &fds.devices.net) {
        context.add_net(socket.as_fd(), net.mac.0)?;
    }
    context.add_console(fds.console.as_fd(), fds.agent.as_fd())?;
    context.add_serial_console(fds.console.as_fd())?;
    Ok(context)
}

/// The kernel speaks through the serial port until it has found its console: what it dies of before
/// that is heard too. An emulated port costs nothing while nothing is said.
const EARLY_CONSOLE: &str = "earlyprintk=serial,ttyS0,115200";

/// libkrun 1.19.7 gives each virtio device an interrupt of its own, and has eleven on x86: 5 to 15
/// (`krun-arch`, `x86_64/layout.rs`, `IRQ_MAX`). A split irqchip makes them no more
/// (`krun-vmm`, `builder.rs`). Three are taken: it always has a balloon and a source of random numbers,
/// and we want a console.
const MAX_DEVICES: u8 = 11 - 3;

/// libkrun takes paths as UTF-8 and no others.
fn utf8(path: &Path) -> Result<&str, String> {
    std::str::from_utf8(path.as_os_str().as_bytes())
        .map_err(|_| format!("libkrun takes no path that is not UTF-8: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::net::UnixStream, path::PathBuf};

    use super::*;
    use crate::vmm::{DeviceSockets, Devices, DiskSpec, MacAddress, NetSpec, ShareSpec};

    #[test]
    fn every_device_there_is_room_for_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, "").unwrap();
        let disk = |index: u8| DiskSpec {
            id: format!("disk{index}"),
            path: PathBuf::from(format!("/disk{index}")),
            format: if index == 0 { DiskFormat::Vmdk } else { DiskFormat::Raw },
            read_only: index == 0,
        };
        let share = |read_only| ShareSpec {
            tag: format!("share-{read_only}"),
            path: dir.path().to_owned(),
            read_only,
        };
        let devices = Devices {
            disks: (0..5).map(disk).collect(),
            shares: vec![share(true), share(false)],
            net: Some(NetSpec { mac: MacAddress([2, 0, 0, 0, 0, 1]) }),
        };
        let spec = VmSpec {
            vcpus: 2,
            memory_mib: 256,
            kernel: kernel.clone(),
            initramfs: kernel,
            arguments: "ignore_loglevel".into(),
            incoming: false,
            devices,
        };
        let (ours, console) = Libkrun.open_console().unwrap();
        let [agent, memory] = [&ours, &ours].map(|fd| fd.try_clone().unwrap());
        let net = UnixStream::pair().unwrap().0.into();
        let sockets = DeviceSockets { net: Some(net), shares: Vec::new() };
        let able = Libkrun.capabilities();
        spec.devices.check(VmmKind::Libkrun, able, &sockets).unwrap();
        let fds = VmFds { agent, console, monitor: ours, memory, devices: sockets };
        configure(&spec, &fds).map(drop).unwrap();
        let mut more = spec.devices;
        more.disks.push(disk(5));
        let refused = more.check(VmmKind::Libkrun, able, &fds.devices).unwrap_err();
        assert!(refused.to_string().starts_with("libkrun has room for 8 "), "{refused}");
    }
}
