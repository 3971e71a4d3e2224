//! The QEMU driver: `-M microvm` with KVM or TCG, 7.2 and later.
//!
//! Without ACPI that machine has eight virtio-mmio transports (`VIRTIO_NUM_TRANSPORTS` of
//! `hw/i386/microvm.c`): console and agent share one, every other device takes one.

pub(crate) mod qmp;
mod state;

use std::{
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::CommandExt},
    },
    path::PathBuf,
    process::{Command, Stdio},
};

use command_fds::{CommandFdExt, FdMapping};
use microsandbox_protocol::PORT_NAME;

use super::{
    Accel, Capabilities, DiskFormat, DiskSpec, Driver, Enter, NetSpec, ShareSpec, VmFds, VmSpec,
    VmmKind,
};

/// QEMU at a path.
#[derive(Debug)]
pub(crate) struct Qemu {
    pub(crate) program: PathBuf,
    pub(crate) accel: Accel,
    /// Rate of the time stamp counter that an emulated guest sees.
    pub(crate) tsc_khz: Option<u32>,
}

/// Descriptor numbers in the QEMU process; 0 to 2 are the standard streams.
const AGENT_FD: i32 = 3;
const CONSOLE_FD: i32 = 4;
const MONITOR_FD: i32 = 5;
const MEMORY_FD: i32 = 6;
const NET_FD: i32 = 7;
/// Those of further shares follow.
const FIRST_SHARE_FD: i32 = 8;

impl Driver for Qemu {
    fn kind(&self) -> VmmKind {
        VmmKind::Qemu
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            pause: true,
            memory_snapshot: true,
            max_devices: 8 - 1,
            max_vcpus: 64,
            shares: self.kind().share_server(),
        }
    }

    fn open_console(&self) -> io::Result<(OwnedFd, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((ours.into(), theirs.into()))
    }

    fn has_monitor(&self) -> bool {
        true
    }
}

impl Enter for Qemu {
    fn enter(&self, spec: &VmSpec, fds: VmFds) -> String {
        let mut command = Command::new(&self.program);
        command.args(self.arguments(spec)).env_clear().stdin(Stdio::null());
        let net = fds.devices.net.map(|fd| (fd, NET_FD));
        let shares = fds.devices.shares.into_iter().zip(FIRST_SHARE_FD..);
        let mapped = [
            (fds.agent, AGENT_FD),
            (fds.console, CONSOLE_FD),
            (fds.monitor, MONITOR_FD),
            (fds.memory, MEMORY_FD),
        ]
        .into_iter()
        .chain(net)
        .chain(shares)
        .map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd });
        match command.fd_mappings(mapped.collect()) {
            Ok(command) => format!("execute {}: {}", self.program.display(), command.exec()),
            Err(error) => format!("pass descriptors to QEMU: {error}"),
        }
    }
}

impl Qemu {
    /// What the kernel is told of this machine.
    ///
    /// With KVM the guest has a better clock than the counter. Under emulation what it does against
    /// speculation does nothing (a guest's indirect jump is a look-up and a jump of QEMU's own), and
    /// every instruction of it is translated at each start.
    fn kernel_words(&self) -> String {
        match (self.accel, self.tsc_khz) {
            (Accel::Tcg, Some(khz)) => format!("mitigations=off tsc_khz={khz} tsc=reliable"),
            (Accel::Tcg, None) => "mitigations=off".into(),
            (Accel::Kvm, _) => String::new(),
        }
    }

    /// The arguments, without what a saved state does not hold: the paths of files, and how the files
    /// of disks are read.
    pub(super) fn machine(&self, spec: &VmSpec) -> Vec<String> {
        let mut spec = VmSpec {
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            incoming: false,
            ..spec.clone()
        };
        for disk in &mut spec.devices.disks {
            disk.path = PathBuf::new();
            disk.format = DiskFormat::Raw;
        }
        let text = |argument: OsString| argument.to_string_lossy().into_owned();
        self.arguments(&spec).into_iter().map(text).collect()
    }

    fn arguments(&self, spec: &VmSpec) -> Vec<OsString> {
        let (accel, cpu) = match self.accel {
            Accel::Kvm => ("kvm", "host"),
            // The newest model: old ones double the time of programs that use what it has. Without
            // fast string operations: the translator executes `rep movsb` byte by byte, and kernel and
            // C library copy with it where the processor claims that it is fast.
            Accel::Tcg => ("tcg,thread=multi", "max,-erms,-fsrm"),
        };
        let mut args: Vec<OsString> = [
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-M",
            "microvm,acpi=off,rtc=off,isa-serial=off,x-option-roms=off,auto-kernel-cmdline=on,\
             memory-backend=memory,dump-guest-core=off",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-device",
            "virtio-serial-device,max_ports=2",
        ]
        .map(OsString::from)
        .into();
        args.extend(["-append".into(), spec.command_line(&self.kernel_words()).into()]);
        args.extend(["-smp".into(), spec.vcpus.to_string().into()]);
        args.extend(["-m".into(), format!("{}M", spec.memory_mib).into()]);
        // Shared: so it is ours to read and write, and the VMM leaves it out of the state it saves.
        let memory = format!(
            "memory-backend-file,id=memory,size={}M,share=on,mem-path=/proc/self/fd/{MEMORY_FD}",
            spec.memory_mib,
        );
        args.extend(["-object".into(), memory.into()]);
        // The state is that of devices alone, without what a migration says of itself in front of it.
        args.extend(["-global".into(), "migration.send-configuration=off".into()]);
        if spec.incoming {
            args.extend(["-incoming".into(), "defer".into()]);
        }
        args.extend(["-kernel".into(), spec.kernel.clone().into()]);
        args.extend(["-initrd".into(), spec.initramfs.clone().into()]);
        args.extend(["-chardev".into(), format!("socket,id=monitor,fd={MONITOR_FD}").into()]);
        args.extend(["-mon".into(), "chardev=monitor,mode=control".into()]);
        for (id, fd, device) in [
            ("console", CONSOLE_FD, "virtconsole,chardev=console".to_owned()),
            ("agent", AGENT_FD, format!("virtserialport,chardev=agent,name={PORT_NAME}")),
        ] {
            args.extend(["-chardev".into(), format!("socket,id={id},fd={fd}").into()]);
            args.extend(["-device".into(), device.into()]);
        }
        for disk in &spec.devices.disks {
            args.extend(disk_arguments(disk));
        }
        if !spec.devices.shares.is_empty() {
            // Backends know the interface of virtio 1 alone; this machine's is the one before it.
            args.extend(["-global".into(), "virtio-mmio.force-legacy=off".into()]);
        }
        for (share, fd) in spec.devices.shares.iter().zip(FIRST_SHARE_FD..) {
            args.extend(share_arguments(share, fd));
        }
        if let Some(net) = spec.devices.net {
            args.extend(net_arguments(net).map(OsString::from));
        }
        args
    }
}

fn disk_arguments(disk: &DiskSpec) -> [OsString; 4] {
    let read_only = if disk.read_only { "on" } else { "off" };
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Vmdk => "vmdk",
    };
    let mut blockdev = OsString::from(format!(
        "driver={format},node-name={id},read-only={read_only},discard=unmap,\
         file.driver=file,file.filename=",
        id = disk.id,
    ));
    blockdev.push(escape_commas(disk.path.as_os_str()));
    // The guest hears of every failure. QEMU's default for a full host disk is to stop the
    // machine until somebody makes room, which nobody is there to do.
    let device = format!(
        "virtio-blk-device,drive={id},serial={id},werror=report,rerror=report",
        id = disk.id,
    );
    ["-blockdev".into(), blockdev, "-device".into(), device.into()]
}

/// The backend reads and writes the guest's memory itself, which for that has to be shared: ours is.
fn share_arguments(share: &ShareSpec, fd: i32) -> [OsString; 4] {
    let mut device = OsString::from(format!("vhost-user-fs-device,chardev=share{fd},tag="));
    device.push(escape_commas(share.tag.as_ref()));
    let chardev = format!("socket,id=share{fd},fd={fd}");
    ["-chardev".into(), chardev.into(), "-device".into(), device]
}

fn net_arguments(net: NetSpec) -> [String; 4] {
    let netdev = format!("stream,id=net,server=off,addr.type=fd,addr.str={NET_FD}");
    let device = format!("virtio-net-device,netdev=net,mac={}", net.mac);
    ["-netdev".into(), netdev, "-device".into(), device]
}

/// QEMU's option syntax ends a value at a comma unless it is doubled.
fn escape_commas(value: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut escaped = Vec::with_capacity(value.len());
    for &byte in value.as_bytes() {
        escaped.push(byte);
        if byte == b',' {
            escaped.push(byte);
        }
    }
    OsString::from_vec(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::{Devices, MacAddress};

    #[test]
    fn devices_are_named_by_descriptor_and_cannot_end_their_option() {
        let disk = DiskSpec {
            id: "upper".into(),
            path: PathBuf::from("/home/a,b/upper.ext4"),
            format: DiskFormat::Raw,
            read_only: false,
        };
        let share =
            |tag: &str| ShareSpec { tag: tag.into(), path: "/shared".into(), read_only: false };
        let spec = VmSpec {
            vcpus: 2,
            memory_mib: 256,
            kernel: "/k".into(),
            initramfs: "/i".into(),
            arguments: String::new(),
            devices: Devices {
                disks: vec![disk],
                shares: vec![share("in"), share("o,ut")],
                net: Some(NetSpec { mac: MacAddress([2, 0, 0, 0xab, 0, 1]) }),
            },
            incoming: false,
        };
        let args =
            Qemu { program: "qemu".into(), accel: Accel::Tcg, tsc_khz: None }.arguments(&spec);
        let args: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
        let at = args.iter().position(|arg| *arg == "-blockdev").unwrap();
        assert!(args[at + 1].ends_with("filename=/home/a,,b/upper.ext4"));
        assert_eq!(
            args[at + 4..],
            [
                "-global",
                "virtio-mmio.force-legacy=off",
                "-chardev",
                "socket,id=share8,fd=8",
                "-device",
                "vhost-user-fs-device,chardev=share8,tag=in",
                "-chardev",
                "socket,id=share9,fd=9",
                "-device",
                "vhost-user-fs-device,chardev=share9,tag=o,,ut",
                "-netdev",
                "stream,id=net,server=off,addr.type=fd,addr.str=7",
                "-device",
                "virtio-net-device,netdev=net,mac=02:00:00:ab:00:01",
            ]
        );
    }
}
