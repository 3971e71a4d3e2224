//! Virtual machine monitors: which there are, which one runs here, and what a VM is made of.
//!
//! A VM is described by plain data and lives in a process of its own ([`process`]), because libkrun
//! takes its process over and because that process is what gets confined.

mod devices;
pub(crate) mod files;
pub(crate) mod probe;
pub(crate) mod process;

#[cfg(feature = "libkrun")]
mod libkrun;
pub(crate) mod qemu;
mod tsc;

use std::{
    fmt,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

pub use devices::{
    DeviceFault, DeviceSockets, Devices, DiskFormat, DiskSpec, MacAddress, NetSpec, ShareServer,
    ShareSpec,
};
pub(crate) use probe::write_whole;
pub use probe::{KvmProbe, probe_kvm};
pub use tsc::host_tsc_khz;

/// The drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmKind {
    /// The libkrun library, in the VMM process itself. Needs KVM.
    Libkrun,
    /// `qemu-system-x86_64`, started by the VMM process. Runs everywhere.
    Qemu,
}

impl VmmKind {
    pub(crate) const fn share_server(self) -> ShareServer {
        match self {
            Self::Libkrun => ShareServer::Vmm,
            Self::Qemu => ShareServer::Backend,
        }
    }
}

impl fmt::Display for VmmKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Libkrun => "libkrun",
            Self::Qemu => "qemu",
        })
    }
}

/// How guest instructions are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By the processor, through `/dev/kvm`.
    Kvm,
    /// By QEMU's translator, in software. As isolated, several times slower.
    Tcg,
}

impl fmt::Display for Accel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "software emulation",
        })
    }
}

/// Which driver the user wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VmmChoice {
    /// libkrun where KVM works, else QEMU.
    #[default]
    Auto,
    /// libkrun or an error.
    Libkrun,
    /// QEMU or an error.
    Qemu,
}

/// A driver that can run here, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelectedVmm {
    /// Which driver.
    pub kind: VmmKind,
    /// How guest code is executed.
    pub accel: Accel,
    /// The program it starts, when it is one.
    pub program: Option<PathBuf>,
    /// Rate of the host's time stamp counter, where an emulated guest sees it and must be told.
    pub tsc_khz: Option<u32>,
}

/// What a driver can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Stop the guest's processors and let them go on.
    pub pause: bool,
    /// Save memory and devices of a running guest, and start from what was saved.
    pub memory_snapshot: bool,
    /// Most disks, shares and network interfaces, taken together.
    pub max_devices: u8,
    /// Most virtual processors.
    pub max_vcpus: u8,
    /// Who opens the files of a share.
    pub shares: ShareServer,
}

/// A virtual machine: everything that shapes it, no descriptor among it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmSpec {
    pub(crate) vcpus: u8,
    pub(crate) memory_mib: u32,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// More words for the kernel's command line, after ours.
    pub(crate) arguments: String,
    pub(crate) devices: Devices,
    /// Whether it waits, before its first instruction, for a state to be loaded.
    pub(crate) incoming: bool,
}

impl VmSpec {
    /// The kernel's command line with the driver's own words in it.
    fn command_line(&self, of_driver: &str) -> String {
        [KERNEL_COMMAND_LINE, of_driver, &self.arguments]
            .into_iter()
            .filter(|words| !words.is_empty())
            .collect::<Vec<_>>()
            .join(" ")
    }
}

/// The VM's ends of its channels.
#[derive(Debug)]
pub(crate) struct VmFds {
    /// Carries the agent protocol.
    pub(crate) agent: OwnedFd,
    /// Takes the guest's console.
    pub(crate) console: OwnedFd,
    /// Carries the VMM's own monitor; a driver without one lets it be.
    pub(crate) monitor: OwnedFd,
    /// Is the guest's memory, where the driver can save a machine: [`new_memory`].
    pub(crate) memory: OwnedFd,
    /// The other half of devices.
    pub(crate) devices: DeviceSockets,
}

impl VmFds {
    /// How many they are.
    fn count(devices: &Devices, server: ShareServer) -> usize {
        let (nets, shares) = devices.sockets(server);
        4 + nets + shares
    }

    /// All, in the order in which they are handed over.
    fn list(&self) -> Vec<BorrowedFd<'_>> {
        let own = [&self.agent, &self.console, &self.monitor, &self.memory].map(AsFd::as_fd);
        own.into_iter().chain(self.devices.iter()).collect()
    }

    /// What was handed over.
    fn take(devices: &Devices, fds: Vec<OwnedFd>) -> io::Result<Self> {
        let mut fds = fds.into_iter();
        let mut next = || fds.next().ok_or(io::ErrorKind::UnexpectedEof);
        let (agent, console, monitor, memory) = (next()?, next()?, next()?, next()?);
        let devices = DeviceSockets::of(devices, fds);
        Ok(Self { agent, console, monitor, memory, devices })
    }
}

/// Memory for a guest, all zeros, that takes room as it is written to.
///
/// A file, so that the supervisor can fill it before the machine runs and read it while the machine
/// stands still. Sealed: a VMM in the hands of its guest can neither grow nor shrink it.
pub(crate) fn new_memory(size_bytes: u64) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = File::from(memfd_create("msb-guest-memory", flags)?);
    memory.set_len(size_bytes)?;
    fcntl_add_seals(&memory, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(memory)
}

/// Kernel command line of every guest: nothing of the sandbox is in it.
///
/// `reboot=t` ends the machine by a triple fault, which works without ACPI and keyboard controller;
/// `panic=-1` reboots at once, so that a dead guest is seen as such.
const KERNEL_COMMAND_LINE: &str = "console=hvc0 quiet reboot=t panic=-1";

/// One way to run a VM.
pub trait Driver: fmt::Debug {
    /// Which it is.
    fn kind(&self) -> VmmKind;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Makes the console's channel: the supervisor's end and the VM's, of the sort this driver
    /// takes.
    ///
    /// # Errors
    /// What the kernel reported.
    #[doc(hidden)]
    fn open_console(&self) -> io::Result<(OwnedFd, OwnedFd)>;

    /// Whether the VMM itself can be talked to while it runs.
    #[doc(hidden)]
    fn has_monitor(&self) -> bool;
}

/// The half of a driver that runs in the VMM process.
pub(crate) trait Enter: Driver {
    /// Turns this process into the VM. Comes back only when that failed, with the reason.
    fn enter(&self, spec: &VmSpec, fds: VmFds) -> String;
}

impl SelectedVmm {
    /// The driver it names.
    pub fn driver(&self) -> Box<dyn Driver> {
        match self.kind {
            #[cfg(feature = "libkrun")]
            VmmKind::Libkrun => Box::new(libkrun::Libkrun),
            _ => Box::new(self.qemu()),
        }
    }

    fn enter(&self, spec: &VmSpec, fds: VmFds) -> String {
        match self.kind {
            #[cfg(feature = "libkrun")]
            VmmKind::Libkrun => libkrun::Libkrun.enter(spec, fds),
            #[cfg(not(feature = "libkrun"))]
            VmmKind::Libkrun => "this program was built without libkrun".into(),
            VmmKind::Qemu => self.qemu().enter(spec, fds),
        }
    }

    /// What it makes of `spec`, whatever the files are that disks, kernel and agent come from; `None`
    /// where no machine can be restored.
    pub(crate) fn machine(&self, spec: &VmSpec) -> Option<Vec<String>> {
        match self.kind {
            VmmKind::Libkrun => None,
            VmmKind::Qemu => Some(self.qemu().machine(spec)),
        }
    }

    fn qemu(&self) -> qemu::Qemu {
        let program = self.program.clone().unwrap_or_else(|| PathBuf::from(QEMU));
        qemu::Qemu { program, accel: self.accel, tsc_khz: self.tsc_khz }
    }
}

const QEMU: &str = "qemu-system-x86_64";

/// Looks for QEMU in the directories of `path`, a list as the variable `PATH` has it.
pub fn find_qemu(path: &std::ffi::OsStr) -> Option<PathBuf> {
    std::env::split_paths(path).map(|dir| dir.join(QEMU)).find(|program| is_executable(program))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}

/// Chooses the driver: by the probe, never by `/dev/kvm` existing.
///
/// # Errors
/// [`Error::VmmUnavailable`] when the wanted one, or any at all, cannot run here.
pub fn select_vmm(
    choice: VmmChoice,
    probe: &KvmProbe,
    qemu: Option<PathBuf>,
) -> Result<SelectedVmm> {
    let libkrun = cfg!(feature = "libkrun");
    let kind = match choice {
        VmmChoice::Auto if libkrun && probe.works => VmmKind::Libkrun,
        VmmChoice::Auto | VmmChoice::Qemu => VmmKind::Qemu,
        VmmChoice::Libkrun => VmmKind::Libkrun,
    };
    let unavailable = |why: String| Error::VmmUnavailable { vmm: kind, why };
    match kind {
        VmmKind::Libkrun if !libkrun => {
            Err(unavailable("this program was built without it".into()))
        }
        VmmKind::Libkrun if !probe.works => Err(unavailable(probe.detail.clone())),
        VmmKind::Libkrun => {
            Ok(SelectedVmm { kind, accel: Accel::Kvm, program: None, tsc_khz: None })
        }
        VmmKind::Qemu => {
            let program = qemu.ok_or_else(|| unavailable(format!("no {QEMU} in PATH")))?;
            let accel = if probe.works { Accel::Kvm } else { Accel::Tcg };
            Ok(SelectedVmm { kind, accel, program: Some(program), tsc_khz: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selection_follows_the_probe_and_says_what_is_missing() {
        let probe = |works| KvmProbe { works, detail: "too slow".into(), took_us: 1 };
        let qemu = || Some(PathBuf::from("/usr/bin/qemu-system-x86_64"));
        let selected = |choice, works, qemu| {
            select_vmm(choice, &probe(works), qemu).map(|vmm| (vmm.kind, vmm.accel)).ok()
        };
        let (krun, kvm, tcg) = (
            Some((VmmKind::Libkrun, Accel::Kvm)),
            Some((VmmKind::Qemu, Accel::Kvm)),
            Some((VmmKind::Qemu, Accel::Tcg)),
        );
        let auto = if cfg!(feature = "libkrun") { krun } else { kvm };
        assert_eq!(selected(VmmChoice::Auto, true, qemu()), auto);
        assert_eq!(selected(VmmChoice::Auto, false, qemu()), tcg);
        assert_eq!(selected(VmmChoice::Auto, false, None), None);
        assert_eq!(selected(VmmChoice::Qemu, true, qemu()), kvm);
        assert_eq!(selected(VmmChoice::Qemu, false, qemu()), tcg);
        assert_eq!(selected(VmmChoice::Libkrun, false, qemu()), None);
    }
}
