//! From launch to a guest that takes commands.

use std::{
    fs::File,
    io::Read,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use microsandbox_protocol::{
    Become, Bootstrap, Disk, ExecDefaults, Held, Hello, Message, Ready, Rebirth, Root, Upper,
};
use tokio::time::Instant;

use super::{
    clock,
    console::BoundedLog,
    machine::{Failed, Machine, failed, refused},
};
use crate::{
    Applied, BootStep, ConfinementRecord, LaunchConfig, RunRecord, SandboxDir,
    checkpoint::Checkpoint,
    own_commands::{clone_hook, self_test},
    record::BootTimes,
    step,
    vmm::{DeviceSockets, Devices, DiskFormat, DiskSpec, VmSpec, process::Vm},
};

/// The disks of [`vm_spec`] as the guest's root.
pub(crate) const ROOT: Root = Root { lower: Disk(0), upper: Upper::Disk(Disk(1)) };

/// The machine that a sandbox is.
pub(crate) fn vm_spec(config: &LaunchConfig) -> VmSpec {
    let dir = SandboxDir::new(&config.dir);
    let disk =
        |id: &str, path, format, read_only| DiskSpec { id: id.into(), path, format, read_only };
    let mut disks = vec![
        disk("lower", config.lower.clone(), DiskFormat::Vmdk, true),
        disk("upper", dir.upper_path(), DiskFormat::Raw, false),
    ];
    disks.extend_from_slice(&config.devices.disks);
    VmSpec {
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        kernel: config.guest.kernel.clone(),
        initramfs: config.guest.initramfs.clone(),
        arguments: config.guest.arguments.clone(),
        devices: Devices { disks, ..config.devices.clone() },
        incoming: false,
    }
}

/// What a machine begins as.
#[derive(Debug, Clone, Copy)]
pub(super) enum Beginning<'a> {
    /// A boot.
    Cold,
    /// One that stood still right before it was told what to be.
    Template(&'a Arc<Checkpoint>),
    /// One that took commands, with the image for its root, and has served nobody.
    ImageTemplate(&'a Arc<Checkpoint>),
    /// One that ran and was saved.
    Saved(&'a Arc<Checkpoint>),
}

impl Beginning<'_> {
    /// Whether the machine has yet to pass a [`self_test`]. That of an image's template has passed one, and
    /// nothing was run in it since: its memory is checked to be the one that passed, and a second test would
    /// take longer than all the rest of such a start.
    const fn needs_self_test(self) -> bool {
        !matches!(self, Self::ImageTemplate(_))
    }
}

/// Starts the sandbox's machine with copies of `sockets`, puts it into `slot` and brings it to where it
/// takes commands, cold or from what it is to begin as. Fills in `record`.
///
/// # Cancel safety
/// The machine is in its slot.
pub(super) async fn boot(
    config: &LaunchConfig,
    sockets: &DeviceSockets,
    beginning: Beginning<'_>,
    record: &mut RunRecord,
    slot: &mut Option<Machine>,
) -> Result<Ready, Failed> {
    let dir = SandboxDir::new(&config.dir);
    let spec = VmSpec { incoming: !matches!(beginning, Beginning::Cold), ..vm_spec(config) };
    let vm = Vm { vmm: &config.vmm, spec: &spec, sockets, confinement: &config.confinement };
    let started = BoundedLog::open(dir.kernel_log_path())
        .and_then(|log| Machine::start(&config.name, vm, Some(log)));
    let started = started.map_err(|error| refused(BootStep::Vmm, error.to_string(), &error));
    let machine = slot.insert(started?);
    step::reached("supervisor.vmm");
    record.vmm_pid = machine.child.id();
    record.boot.vmm_us = elapsed_us(config);
    record.confinement = Some(ConfinementRecord {
        wanted: config.confinement.layers.clone(),
        supervisor: Applied::expected(&config.confinement),
        vmm: machine.confined.clone(),
    });
    bring_up(machine, config, beginning, &mut record.boot).await
}

async fn bring_up(
    machine: &mut Machine,
    config: &LaunchConfig,
    beginning: Beginning<'_>,
    times: &mut BootTimes,
) -> Result<Ready, Failed> {
    let deadline = match beginning {
        // Its agent has said hello to another host before.
        Beginning::Template(checkpoint) | Beginning::ImageTemplate(checkpoint) => {
            let deadline = Instant::now() + RESTORE_TIMEOUT.min(config.boot_timeout);
            machine.restore(checkpoint, deadline).await?;
            deadline
        }
        Beginning::Saved(checkpoint) => {
            let deadline = Instant::now() + config.boot_timeout;
            machine.restore(checkpoint, deadline).await?;
            deadline
        }
        Beginning::Cold => {
            let deadline = Instant::now() + config.boot_timeout;
            machine.hello(deadline).await?;
            deadline
        }
    };
    times.hello_us = elapsed_us(config);
    times.exec_us = machine.vmm_runs_since().map_or(0, |at| since_asked_us(config, at));
    step::reached("supervisor.hello");
    let (hostname, defaults) = (config.hostname.clone(), config.defaults.clone());
    match beginning {
        Beginning::Cold | Beginning::Template(_) => {
            bootstrap(machine, hostname, defaults, config.from.is_clone())?;
        }
        Beginning::ImageTemplate(_) => become_sandbox(machine, hostname, defaults)?,
        Beginning::Saved(_) => {
            let (wall_clock, entropy, hostname) = (clock::now(), entropy()?, Some(hostname));
            machine.agent.send(Rebirth { wall_clock, entropy, hostname }.to_frame(0));
        }
    }
    if beginning.needs_self_test() {
        // Behind it at once: the agent keeps it until it is ready, which saves a round trip.
        machine.agent.send(self_test().to_frame(OWN_STREAM));
    }
    let ready = machine.ready(deadline).await?;
    times.agent_ready_us = elapsed_us(config);
    if beginning.needs_self_test() {
        machine.pass_self_test(deadline).await?;
    }
    if config.from.is_clone() {
        machine.agent.send(clone_hook().to_frame(OWN_STREAM));
        machine.pass_clone_hook(deadline).await?;
    }
    times.ready_us = elapsed_us(config);
    Ok(ready)
}

/// Brings a machine whose agent has said hello to where any sandbox of its image can go on from: it
/// takes commands, has run none but the first, and holds its link.
pub(crate) async fn become_nobody(machine: &mut Machine, deadline: Instant) -> Result<(), Failed> {
    bootstrap(machine, NOBODY.into(), ExecDefaults::default(), false)?;
    machine.agent.send(self_test().to_frame(OWN_STREAM));
    machine.ready(deadline).await?;
    machine.pass_self_test(deadline).await?;
    machine.agent.hold();
    let held = machine.receive(BootStep::SelfTest, deadline).await?;
    Held::from_frame(&held).map(drop).map_err(|error| failed(BootStep::SelfTest)(error.to_string()))
}

/// Has a machine that was restored from there take part in the world again.
pub(crate) async fn become_nobody_again(
    machine: &mut Machine,
    deadline: Instant,
) -> Result<(), Failed> {
    become_sandbox(machine, NOBODY.into(), ExecDefaults::default())?;
    machine.ready(deadline).await.map(drop)
}

/// Name of a machine that is no sandbox's. The shortest there is: files that tell it can only become
/// longer, which is the cheaper way.
const NOBODY: &str = "m";

/// Tells a machine that is nobody's what sandbox it is.
fn become_sandbox(
    machine: &Machine,
    hostname: String,
    defaults: ExecDefaults,
) -> Result<(), Failed> {
    let orders = Become { wall_clock: clock::now(), entropy: entropy()?, hostname, defaults };
    machine.agent.send(orders.to_frame(0));
    Ok(())
}

/// Tells an agent that has said hello what sandbox it is.
fn bootstrap(
    machine: &Machine,
    hostname: String,
    defaults: ExecDefaults,
    is_clone: bool,
) -> Result<(), Failed> {
    machine.agent.send(Hello::OURS.to_frame());
    let (wall_clock, entropy) = (clock::now(), entropy()?);
    let orders = Bootstrap { wall_clock, entropy, hostname, root: ROOT, defaults, is_clone };
    machine.agent.send(orders.to_frame(0));
    Ok(())
}

/// Longest from a template to ready, which is tenths of a second; then a cold boot has its chance.
const RESTORE_TIMEOUT: Duration = Duration::from_secs(20);

/// Streams below the clients' ranges are the supervisor's own.
const OWN_STREAM: u32 = 1;

/// Random bytes of the host, enough for a guest.
fn entropy() -> Result<Vec<u8>, Failed> {
    let mut entropy = vec![0; ENTROPY_BYTES];
    let read = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut entropy));
    read.map_err(|error| failed(BootStep::Kernel)(format!("draw random bytes: {error}")))?;
    Ok(entropy)
}

/// Twice the 256 bits that the guest kernel's generator holds (`drivers/char/random.c`).
const ENTROPY_BYTES: usize = 64;

/// Microseconds since the launch was asked for.
pub(super) fn elapsed_us(config: &LaunchConfig) -> u64 {
    since_asked_us(config, SystemTime::now())
}

fn since_asked_us(config: &LaunchConfig, at: SystemTime) -> u64 {
    let at = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX).saturating_sub(config.asked_at_us)
}
