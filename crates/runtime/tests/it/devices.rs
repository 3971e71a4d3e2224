//! Devices beside the root's two disks, in a real guest under QEMU: more disks, a network interface, a
//! share.
//!
//! The root is made by `mkfs.erofs` and `mke2fs` from the image that `cargo xtask test` prepares.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox_runtime::{
    Accel, AgentClient, Belongings, ColdReason, DeviceSockets, Devices, DiskFormat, DiskSpec,
    ExecUpdate, LaunchConfig, MacAddress, NetSpec, Origin, SandboxDir, SandboxLock, SelectedVmm,
    ShareSpec, TemplateLimits, Templates, VmmKind, launch, own_program,
    wire::{Exec, ExitStatus, Program},
};
use tempfile::TempDir;

use super::{MSB_TEST_IMAGES, orders, told, variable};

/// Longest boot, command or frame on a busy machine.
const DEADLINE: Duration = Duration::from_secs(120);

const MAC: MacAddress = MacAddress([0x02, 0, 0, 0xab, 0xcd, 0x01]);

pub(super) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("devices::as_many_as_qemu_has_room_for", || told(all_there_is_room_for)),
        Trial::test("devices::a_frame_goes_out_and_one_comes_in", || told(frames)),
        Trial::test("devices::a_share_is_served_by_its_backend", || told(share)),
    ]
}

/// A sandbox with a root and devices, not started.
struct Machine {
    home: TempDir,
    dir: SandboxDir,
    lock: SandboxLock,
    orders: LaunchConfig,
}

impl Machine {
    fn new(devices: Devices) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let dir = SandboxDir::new(home.path().join("sandbox"));
        let lock = dir.create_locked()?;
        let lower = make_root(home.path(), &dir.upper_path())?;
        let program = Some(PathBuf::from("/usr/bin/qemu-system-x86_64"));
        let vmm = SelectedVmm { kind: VmmKind::Qemu, accel: Accel::Tcg, program, tsc_khz: None };
        let mut orders = orders(dir.path(), vmm, DEADLINE)?;
        orders.lower = lower;
        orders.devices = devices;
        let templates = home.path().join("templates");
        orders.templates = Some(Templates::new(templates, TemplateLimits::default()));
        Ok(Self { home, dir, lock, orders })
    }

    /// Runs a shell command in it, with these sockets; gives what it prints.
    fn run(self, sockets: DeviceSockets, command: &str) -> Result<String> {
        let belongings = Belongings { lock: self.lock, sockets };
        let runtime = tokio::runtime::Runtime::new()?;
        let program = own_program().context("init has run")?;
        let ran = async {
            let launched = launch(&program, &self.orders, belongings).await?;
            let origin = &launched.run.origin;
            ensure!(*origin == Some(Origin::Cold { why: ColdReason::Devices }), "{origin:?}");
            shell(&AgentClient::connect(&self.dir).await?, command).await
        };
        let printed = runtime.block_on(async { tokio::time::timeout(DEADLINE, ran).await });
        let printed = printed.unwrap_or_else(|_| bail!("{command}: it takes too long"));
        self.dir.wait_until_free()?;
        drop(self.home);
        printed
    }
}

/// The busybox image as disks: gives the descriptor of the lower one.
fn make_root(home: &Path, upper: &Path) -> Result<PathBuf> {
    let layout = PathBuf::from(variable(MSB_TEST_IMAGES)?).join("busybox");
    let root = home.join("root");
    fs::create_dir(&root)?;
    run(Command::new("tar").arg("-xf").arg(layer_of(&layout)?).arg("-C").arg(&root))?;
    let raw = home.join("lower.raw");
    run(Command::new("mkfs.erofs").arg(&raw).arg(&root))?;
    let sectors = fs::metadata(&raw)?.len().div_ceil(512);
    let descriptor = crate::EMPTY_VMDK.replace("RW 2048", &format!("RW {sectors}"));
    let lower = home.join("lower.vmdk");
    fs::write(&lower, descriptor)?;
    let fresh = home.join("fresh");
    for folder in ["upper", "work"] {
        fs::create_dir_all(fresh.join(folder))?;
    }
    let mut format = Command::new("/usr/sbin/mke2fs");
    run(format.args(["-q", "-t", "ext4", "-d"]).arg(&fresh).arg(upper).arg("16M"))?;
    Ok(lower)
}

/// The one layer of an OCI layout.
fn layer_of(layout: &Path) -> Result<PathBuf> {
    let blob = |descriptor: &serde_json::Value| {
        let digest = descriptor["digest"].as_str().context("a digest")?;
        anyhow::Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let read = |path: PathBuf| anyhow::Ok(serde_json::from_slice(&fs::read(path)?)?);
    let index: serde_json::Value = read(layout.join("index.json"))?;
    let manifest: serde_json::Value = read(blob(&index["manifests"][0])?)?;
    blob(&manifest["layers"][0])
}

fn run(command: &mut Command) -> Result<()> {
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    ensure!(done.status.success(), "{command:?}: {done:?}");
    Ok(())
}

async fn shell(client: &AgentClient, command: &str) -> Result<String> {
    let exec = Exec {
        args: vec!["-c".into(), command.into()],
        env: vec![("PATH".into(), "/bin".into())],
        cwd: Some("/".into()),
        user: Some("0:0".into()),
        ..Exec::new(Program::Path("/bin/sh".into()))
    };
    let mut stream = client.exec(&exec)?;
    let mut printed = Vec::new();
    while let Some(update) = stream.next().await? {
        match update {
            ExecUpdate::Stdout(bytes) | ExecUpdate::Stderr(bytes) => printed.extend(bytes),
            ExecUpdate::Exited(exited) => {
                let printed = String::from_utf8(printed)?;
                ensure!(exited.status == ExitStatus::Code(0), "{command}: {exited:?}: {printed}");
                return Ok(printed);
            }
            _ => {}
        }
    }
    bail!("{command}: no end came")
}

/// Disks of 1 MiB and up, each of another size.
fn disks(home: &Path, count: u64) -> Result<Vec<DiskSpec>> {
    (1..=count)
        .map(|index| {
            let path = home.join(format!("disk{index}"));
            File::create(&path)?.set_len(index << 20)?;
            let id = format!("more{index}");
            Ok(DiskSpec { id, path, format: DiskFormat::Raw, read_only: index == 1 })
        })
        .collect()
}

/// A network interface and as many disks as go beside it; one more is refused by name.
fn all_there_is_room_for() -> Result<()> {
    let home = tempfile::tempdir()?;
    let net = Some(NetSpec { mac: MAC });
    let mut machine = Machine::new(Devices { net, ..Devices::default() })?;
    let room = u64::from(machine.orders.vmm.driver().capabilities().max_devices);
    let of_root_and_net = 3;
    machine.orders.devices.disks = disks(home.path(), room - of_root_and_net)?;

    let devices = Devices { disks: disks(home.path(), room - 2)?, shares: Vec::new(), net };
    let too_many = Machine::new(devices)?;
    let (_far, near) = UnixStream::pair()?;
    let sockets = DeviceSockets { net: Some(near.into()), shares: Vec::new() };
    let refused = too_many.run(sockets, "true").err().context("it was launched")?;
    let told =
        format!("qemu has room for {room} disks, shares and network interfaces, not {}", room + 1);
    ensure!(refused.root_cause().to_string() == told, "{refused:?}");

    let (_far, near) = UnixStream::pair()?;
    let sockets = DeviceSockets { net: Some(near.into()), shares: Vec::new() };
    let seen = machine.run(
        sockets,
        "cd /sys/block; for disk in vd[c-z]; do echo $(cat $disk/serial) $(cat $disk/size); done; \
         cat /sys/class/net/eth0/address",
    )?;
    let disks = (1..=room - of_root_and_net).map(|index| format!("more{index} {}\n", index << 11));
    let expected = disks.collect::<String>() + &format!("{MAC}\n");
    ensure!(seen == expected, "{seen} instead of {expected}");
    Ok(())
}

/// A frame as it goes over the socket.
fn next_frame(socket: &mut UnixStream) -> Result<Vec<u8>> {
    let mut len = [0; 4];
    socket.read_exact(&mut len)?;
    let mut frame = vec![0; u32::from_be_bytes(len) as usize];
    socket.read_exact(&mut frame)?;
    Ok(frame)
}

/// The guest asks who has an address: we hear it, answer, and the guest has heard us.
fn frames() -> Result<()> {
    let machine = Machine::new(Devices { net: Some(NetSpec { mac: MAC }), ..Devices::default() })?;
    let (mut far, near) = UnixStream::pair()?;
    far.set_read_timeout(Some(DEADLINE))?;
    let sockets = DeviceSockets { net: Some(near.into()), shares: Vec::new() };
    let peer = std::thread::spawn(move || answer(&mut far));
    let heard = machine.run(
        sockets,
        "ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up && arping -c 1 -w 100 -I eth0 10.0.0.1",
    )?;
    let asked = peer.join().expect("the peer does not panic")?;
    ensure!(heard.contains("02:00:00:00:00:99") || heard.contains("2:0:0:0:0:99"), "{heard}");
    // Who asks: hardware and protocol address (RFC 826).
    ensure!(asked[6..12] == MAC.0 && asked[22..28] == MAC.0, "{asked:02x?}");
    ensure!(asked[28..32] == [10, 0, 0, 2], "{asked:02x?}");
    Ok(())
}

/// Waits for the question who has 10.0.0.1, and says that we do.
fn answer(socket: &mut UnixStream) -> Result<Vec<u8>> {
    use std::io::Write;
    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 0x99];
    loop {
        let asked = next_frame(socket)?;
        let is_arp_request =
            asked.get(12..14) == Some(&[8, 6]) && asked.get(20..22) == Some(&[0, 1]);
        if !is_arp_request || asked.get(38..42) != Some(&[10, 0, 0, 1]) {
            continue;
        }
        let mut answer =
            [&asked[6..12], &OURS, &asked[12..20], &[0, 2], &OURS, &[10, 0, 0, 1]].concat();
        answer.extend(&asked[22..32]);
        socket.write_all(&u32::try_from(answer.len())?.to_be_bytes())?;
        socket.write_all(&answer)?;
        return Ok(asked);
    }
}

/// A backend that is started and ended with the test.
struct Backend(Child);

impl Backend {
    fn start(shared: &Path, socket: &Path) -> Result<Self> {
        let mut backend = Command::new("/usr/lib/qemu/virtiofsd");
        backend.arg(format!("--socket-path={}", socket.display()));
        backend.args(["-o", &format!("source={},sandbox=chroot", shared.display())]);
        Ok(Self(backend.stdin(Stdio::null()).spawn().context("start virtiofsd")?))
    }

    fn connect(&mut self, socket: &Path) -> Result<UnixStream> {
        let began = std::time::Instant::now();
        loop {
            match UnixStream::connect(socket) {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotFound | ErrorKind::ConnectionRefused
                    ) =>
                {
                    ensure!(self.0.try_wait()?.is_none(), "virtiofsd has ended");
                    ensure!(began.elapsed() < DEADLINE, "virtiofsd does not listen");
                    std::thread::yield_now();
                }
                connected => return Ok(connected?),
            }
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

fn share() -> Result<()> {
    let home = tempfile::tempdir()?;
    let shared = home.path().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("in"), "from the host\n")?;
    let socket = home.path().join("backend.sock");
    let mut backend = Backend::start(&shared, &socket)?;
    let connected = backend.connect(&socket)?;
    let share = ShareSpec { tag: "the, share".into(), path: shared.clone(), read_only: false };
    let machine = Machine::new(Devices { shares: vec![share], ..Devices::default() })?;
    let sockets = DeviceSockets { net: None, shares: vec![connected.into()] };
    let seen = machine.run(
        sockets,
        "mkdir /mnt && mount -t virtiofs 'the, share' /mnt && cat /mnt/in && echo back > /mnt/out",
    )?;
    ensure!(seen == "from the host\n", "{seen}");
    ensure!(fs::read_to_string(shared.join("out"))? == "back\n");
    Ok(())
}
