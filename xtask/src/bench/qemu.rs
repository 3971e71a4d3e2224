//! The raw floor: QEMU started by hand with a guest, until the agent's first bytes.
//!
//! Same machine and same devices as a sandbox has, and nothing else: no supervisor, no disk
//! worth reading, no command. What a sandbox takes beyond this is our own work.

use std::{
    fs::File,
    io::Read as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// No machine worth measuring on takes this long.
const DEADLINE: Duration = Duration::from_secs(60);
/// Size of the two disks, which nothing reads: enough to be disks.
const DISK_BYTES: u64 = 1 << 20;

/// Boots once; the time from starting QEMU to the first bytes on the agent's port.
pub(super) fn boot(kernel: &Path, initramfs: &Path) -> Result<Duration> {
    let work = tempfile::tempdir().context("create a temporary folder")?;
    let disks = ["lower", "upper"].map(|name| work.path().join(name));
    for disk in &disks {
        let made = File::create(disk).and_then(|file| file.set_len(DISK_BYTES));
        made.with_context(|| format!("create {}", disk.display()))?;
    }
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "microvm,acpi=off,isa-serial=off,x-option-roms=off"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=hvc0 quiet reboot=t panic=-1"])
        .args(["-device", "virtio-serial-device"])
        .args(["-chardev", "null,id=console", "-device", "virtconsole,chardev=console"])
        .args(["-chardev", "stdio,id=agent,signal=off"])
        .args(["-device", "virtserialport,chardev=agent,name=agent"]);
    for (index, disk) in disks.iter().enumerate() {
        let drive = format!("if=none,id=disk{index},format=raw,file={}", disk.display());
        let device = format!("virtio-blk-device,drive=disk{index}");
        command.args(["-drive", &drive, "-device", &device]);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());

    let started = Instant::now();
    let mut machine = Machine(command.spawn().context("start qemu-system-x86_64")?);
    let mut port = machine.0.stdout.take().context("take QEMU's output")?;
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut first = [0; 1];
        let read = port.read(&mut first);
        // The receiver is gone only if it has stopped waiting.
        sender.send(read.map(|read| (read, started.elapsed()))).ok();
    });
    match receiver.recv_timeout(DEADLINE) {
        Ok(Ok((1.., took))) => Ok(took),
        Ok(Ok((0, _))) => bail!("QEMU ended before the agent of {} spoke", initramfs.display()),
        Ok(Err(error)) => Err(error).context("read from the agent's port"),
        Err(_) => bail!("{} did not boot within {} s", kernel.display(), DEADLINE.as_secs()),
    }
}

/// A running QEMU, ended when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
