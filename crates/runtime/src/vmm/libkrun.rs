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

use super::{Capabilities, DiskFormat, Driver, Enter, KERNEL_COMMAND_LINE, VmFds, VmSpec, VmmKind};
use crate::sys::krun::{Context, KrunDisk};

/// libkrun, linked into this program.
#[derive(Debug)]
pub(crate) struct Libkrun;

impl Driver for Libkrun {
    fn kind(&self) -> VmmKind {
        VmmKind::Libkrun
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { pause: false, memory_snapshot: false, max_disks: 16, max_vcpus: 64 }
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
        configure(spec, &fds).map_or_else(|problem| problem, |context| context.start())
    }
}

fn configure(spec: &VmSpec, fds: &VmFds) -> Result<Context, String> {
    let context = Context::create()?;
    context.set_machine(spec.vcpus, spec.memory_mib)?;
    // Without this x86 has IRQs 5 to 15 and one device takes one.
    context.split_irqchip()?;
    context.disable_implicit_devices()?;
    context.set_kernel(utf8(&spec.kernel)?, utf8(&spec.initramfs)?, KERNEL_COMMAND_LINE)?;
    for disk in &spec.disks {
        context.add_disk(&KrunDisk {
            id: &disk.id,
            path: utf8(&disk.path)?,
            vmdk: disk.format == DiskFormat::Vmdk,
            read_only: disk.read_only,
        })?;
    }
    context.add_console(fds.console.as_fd(), fds.agent.as_fd())?;
    Ok(context)
}

/// libkrun takes paths as UTF-8 and no others.
fn utf8(path: &Path) -> Result<&str, String> {
    std::str::from_utf8(path.as_os_str().as_bytes())
        .map_err(|_| format!("libkrun takes no path that is not UTF-8: {}", path.display()))
}
