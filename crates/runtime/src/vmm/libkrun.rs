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
        Capabilities { pause: false, memory_snapshot: false, max_disks: MAX_DISKS, max_vcpus: 64 }
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
    if spec.disks.len() > usize::from(MAX_DISKS) {
        return Err(format!("libkrun has room for {MAX_DISKS} disks, not {}", spec.disks.len()));
    }
    let context = Context::create()?;
    context.set_machine(spec.vcpus, spec.memory_mib)?;
    context.split_irqchip()?;
    context.disable_implicit_devices()?;
    let command_line = spec.command_line(EARLY_CONSOLE);
    context.set_kernel(utf8(&spec.kernel)?, utf8(&spec.initramfs)?, &command_line)?;
    for disk in &spec.disks {
        context.add_disk(&KrunDisk {
            id: &disk.id,
            path: utf8(&disk.path)?,
            vmdk: disk.format == DiskFormat::Vmdk,
            read_only: disk.read_only,
        })?;
    }
    context.add_console(fds.console.as_fd(), fds.agent.as_fd())?;
    context.add_serial_console(fds.console.as_fd())?;
    Ok(context)
}

/// The kernel speaks through the serial port until it has found its console: what it dies of before
/// that is heard too. An emulated port costs nothing while nothing is said.
const EARLY_CONSOLE: &str = "earlyprintk=serial,ttyS0,115200";

/// Devices for which x86 libkrun has interrupts: one each of 5 to 15, whatever the irqchip
/// (`krun-arch`, `x86_64/layout.rs`). It always has a balloon and a source of random numbers, and we
/// want a console.
const MAX_DISKS: u8 = 11 - 3;

/// libkrun takes paths as UTF-8 and no others.
fn utf8(path: &Path) -> Result<&str, String> {
    std::str::from_utf8(path.as_os_str().as_bytes())
        .map_err(|_| format!("libkrun takes no path that is not UTF-8: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::vmm::DiskSpec;

    #[test]
    fn every_disk_there_is_room_for_is_accepted_and_one_more_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("vmlinux");
        std::fs::write(&kernel, "").unwrap();
        let disk = |index: u8| DiskSpec {
            id: format!("disk{index}"),
            path: PathBuf::from(format!("/disk{index}")),
            format: if index == 0 { DiskFormat::Vmdk } else { DiskFormat::Raw },
            read_only: index == 0,
        };
        let configured = |disks: u8| {
            let spec = VmSpec {
                vcpus: 2,
                memory_mib: 256,
                kernel: kernel.clone(),
                initramfs: kernel.clone(),
                arguments: "ignore_loglevel".into(),
                incoming: false,
                disks: (0..disks).map(disk).collect(),
            };
            let (ours, console) = Libkrun.open_console().unwrap();
            let [agent, memory] = [&ours, &ours].map(|fd| fd.try_clone().unwrap());
            let fds = VmFds { agent, console, monitor: ours, memory };
            configure(&spec, &fds).map(drop)
        };
        assert_eq!(configured(MAX_DISKS), Ok(()));
        assert_eq!(configured(9), Err("libkrun has room for 8 disks, not 9".into()));
    }
}
