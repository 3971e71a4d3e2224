//! The raw floors: QEMU started by hand with a guest, until its agent speaks, booted or restored from what
//! was saved of another; and what the console port carries when a guest does nothing but move bytes.
//!
//! Same machine and same devices as a sandbox has, and nothing else: no supervisor, no disk
//! worth reading, no relay, nothing checked. What a sandbox takes beyond this is our own work.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::initramfs;

/// No machine worth measuring on takes this long.
const DEADLINE: Duration = Duration::from_secs(60);
/// Size of the two disks, which nothing reads: enough to be disks.
const DISK_BYTES: u64 = 1 << 20;

/// Frames with the number 1 (`docs/formats/protocol.md`): length, stream, kind, flags, body.
const PING: [u8; 11] = [7, 0, 0, 0, 0, 0, 0, 0, 7, 0, 1];
const PONG: [u8; 11] = [7, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1];

/// Boots once; the time from starting QEMU to the first bytes on the agent's port.
pub(super) fn boot(kernel: &Path, initramfs: &Path) -> Result<Duration> {
    let guest = Guest::new(kernel, initramfs)?;
    let started = Instant::now();
    let mut machine = Machine::start(&guest, Memory::Anonymous)?;
    machine.hello().with_context(|| format!("boot {}", kernel.display()))?;
    Ok(started.elapsed())
}

/// What is booted, with disks for it.
#[derive(Debug)]
struct Guest {
    kernel: PathBuf,
    initramfs: PathBuf,
    work: TempDir,
}

impl Guest {
    fn new(kernel: &Path, initramfs: &Path) -> Result<Self> {
        // In memory where there is such a folder: the template's file is as large as the machine.
        let shared = Path::new("/dev/shm");
        let work = match shared.is_dir() {
            true => tempfile::tempdir_in(shared),
            false => tempfile::tempdir(),
        };
        let work = work.context("create a temporary folder")?;
        let guest = Self { kernel: kernel.to_owned(), initramfs: initramfs.to_owned(), work };
        for disk in guest.disks() {
            let made = File::create(&disk).and_then(|file| file.set_len(DISK_BYTES));
            made.with_context(|| format!("create {}", disk.display()))?;
        }
        Ok(guest)
    }

    fn disks(&self) -> [PathBuf; 2] {
        ["lower", "upper"].map(|name| self.path(name))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }
}

/// What a machine has for memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Memory {
    Anonymous,
    /// The template's file, for a machine that is to be saved.
    Shared,
    /// A private mapping of it, for one that goes on from there.
    Private,
}

/// A machine that stood still after its agent's first words, as files.
#[derive(Debug)]
pub(super) struct RawTemplate {
    guest: Guest,
}

impl RawTemplate {
    /// Boots and saves one.
    pub(super) fn save(kernel: &Path, initramfs: &Path) -> Result<Self> {
        let guest = Guest::new(kernel, initramfs)?;
        let mut machine = Machine::start(&guest, Memory::Shared)?;
        machine.hello()?;
        machine.greet()?;
        machine.execute("stop", Value::Null)?;
        let state = format!("exec:cat > {}", guest.path("state").display());
        machine.execute("migrate", json!({ "uri": state }))?;
        machine.migrated()?;
        drop(machine);
        Ok(Self { guest })
    }

    /// Restores it once; the time from starting QEMU to an answer of the agent.
    pub(super) fn restore(&self) -> Result<Duration> {
        let started = Instant::now();
        let mut machine = Machine::start(&self.guest, Memory::Private)?;
        machine.greet()?;
        let state = format!("exec:cat {}", self.guest.path("state").display());
        machine.execute("migrate-incoming", json!({ "uri": state }))?;
        machine.migrated()?;
        machine.execute("cont", Value::Null)?;
        machine.agent.write_all(&PING).context("ask the agent")?;
        let mut answer = [0; PONG.len()];
        machine.agent.read_exact(&mut answer).context("hear from the restored agent")?;
        ensure!(answer == PONG, "the restored agent answered {answer:?}");
        Ok(started.elapsed())
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the guest.
    Output,
    /// To the guest.
    Input,
}

/// Bytes in one system call of the guest.
const BLOCK: u64 = 64 << 10;

/// Moves `bytes`, which are whole blocks, between this program and a guest in which busybox does nothing
/// but read its port or write to it; the time that took.
pub(super) fn pump(
    kernel: &Path,
    busybox: &[u8],
    direction: Direction,
    bytes: u64,
) -> Result<Duration> {
    ensure!(bytes.is_multiple_of(BLOCK), "{bytes} bytes are no blocks");
    let blocks = bytes / BLOCK;
    let pump = match direction {
        Direction::Output => format!("dd if=/dev/zero bs={BLOCK} count={blocks} >&3"),
        Direction::Input => {
            format!("dd of=/dev/null iflag=fullblock bs={BLOCK} count={blocks} <&3; echo >&3")
        }
    };
    // The port may be open once at a time, and is kept open until the host has everything.
    let script = format!(
        "#!/bin/sh\nmount -t devtmpfs dev /dev\nexec 3<>/dev/vport0p1 2>/dev/null\n\
         echo >&3\n{pump}\nread end <&3\n"
    );
    let work = tempfile::tempdir().context("create a temporary folder")?;
    let packed = work.path().join("initramfs.cpio");
    fs::write(&packed, initramfs::pack_script(busybox, &["sh", "mount", "dd"], &script)?)
        .with_context(|| format!("write {}", packed.display()))?;
    let guest = Guest::new(kernel, &packed)?;
    let mut machine = Machine::start(&guest, Memory::Anonymous)?;
    machine.hello()?;
    let port = &mut machine.agent;

    let begun = Instant::now();
    let mut piece = vec![0; 256 << 10];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
        let moved = match direction {
            Direction::Output => port.read(&mut piece[..most]).context("read the port")?,
            Direction::Input => port.write(&piece[..most]).context("write the port")?,
        };
        ensure!(moved > 0, "the guest has closed its port with {left} bytes left");
        left -= moved as u64;
    }
    if direction == Direction::Input {
        port.read_exact(&mut [0]).context("hear that all of it was read")?;
    }
    Ok(begun.elapsed())
}

/// A running QEMU, ended when dropped.
#[derive(Debug)]
struct Machine {
    child: Child,
    agent: UnixStream,
    monitor: BufReader<UnixStream>,
}

impl Machine {
    fn start(guest: &Guest, memory: Memory) -> Result<Self> {
        let mut command = Command::new("qemu-system-x86_64");
        let backend = match memory {
            Memory::Anonymous => "",
            Memory::Shared | Memory::Private => ",memory-backend=memory",
        };
        command
            .arg("-M")
            .arg(format!("microvm,acpi=off,rtc=off,isa-serial=off,x-option-roms=off{backend}"))
            .args(["-accel", "tcg,thread=multi", "-cpu", "max,-erms,-fsrm"])
            .args(["-m", "512", "-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-kernel"])
            .arg(&guest.kernel)
            .arg("-initrd")
            .arg(&guest.initramfs)
            .args(["-append", "console=hvc0 quiet reboot=t panic=-1"])
            .args(["-chardev", "socket,id=monitor,fd=0", "-mon", "chardev=monitor,mode=control"])
            .args(["-device", "virtio-serial-device"])
            .args(["-chardev", "null,id=console", "-device", "virtconsole,chardev=console"])
            .args(["-chardev", "socket,id=agent,fd=1"])
            .args(["-device", "virtserialport,chardev=agent,name=agent"]);
        if memory != Memory::Anonymous {
            let share = if memory == Memory::Shared { "on" } else { "off" };
            let path = guest.path("memory");
            let file = format!("size=512M,share={share},mem-path={}", path.display());
            command.arg("-object").arg(format!("memory-backend-file,id=memory,{file}"));
        }
        if memory == Memory::Private {
            command.args(["-incoming", "defer"]);
        }
        for (index, disk) in guest.disks().iter().enumerate() {
            let drive = format!("if=none,id=disk{index},format=raw,file={}", disk.display());
            let device = format!("virtio-blk-device,drive=disk{index}");
            command.args(["-drive", &drive, "-device", &device]);
        }
        let ([monitor, its_monitor], [agent, its_agent]) = (pair()?, pair()?);
        command.stdin(Stdio::from(OwnedFd::from(its_monitor)));
        command.stdout(Stdio::from(OwnedFd::from(its_agent))).stderr(Stdio::inherit());
        let child = command.spawn().context("start qemu-system-x86_64")?;
        Ok(Self { child, agent, monitor: BufReader::new(monitor) })
    }

    /// Waits for the guest's first byte.
    fn hello(&mut self) -> Result<()> {
        self.agent.read_exact(&mut [0]).context("wait for the guest's first byte")
    }

    /// Begins to talk with QEMU, and says that memory is no part of what it saves and restores.
    fn greet(&mut self) -> Result<()> {
        self.execute("qmp_capabilities", Value::Null)?;
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.execute("migrate-set-capabilities", capabilities)
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<()> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let sent = writeln!(self.monitor.get_mut(), "{request}");
        sent.with_context(|| format!("ask QEMU to {command}"))?;
        let answer = self.message(|it| !it["return"].is_null() || !it["error"].is_null())?;
        ensure!(answer["error"].is_null(), "QEMU refused to {command}: {answer}");
        Ok(())
    }

    /// Waits until the state has gone through.
    fn migrated(&mut self) -> Result<()> {
        let is_end = |status: &Value| matches!(status.as_str(), Some("completed" | "failed"));
        let end = self.message(|it| it["event"] == "MIGRATION" && is_end(&it["data"]["status"]))?;
        ensure!(end["data"]["status"] == "completed", "QEMU could not move the state: {end}");
        Ok(())
    }

    /// The next message of QEMU that is looked for.
    fn message(&mut self, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        loop {
            let mut line = String::new();
            let read = self.monitor.read_line(&mut line).context("hear from QEMU")?;
            ensure!(read > 0, "QEMU closed its monitor");
            let message = serde_json::from_str(&line).context("read what QEMU says")?;
            if is_it(&message) {
                return Ok(message);
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A socket's two ends; ours waits for nothing for ever.
fn pair() -> Result<[UnixStream; 2]> {
    let (ours, theirs) = UnixStream::pair().context("make a socket")?;
    ours.set_read_timeout(Some(DEADLINE)).context("set a deadline")?;
    ours.set_write_timeout(Some(DEADLINE)).context("set a deadline")?;
    Ok([ours, theirs])
}
