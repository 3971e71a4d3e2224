//! Building a template: a process of its own, that nobody waits for and nothing of the sandbox ends.
//!
//! It boots a machine at the lowest priority: with empty disks until the agent has said hello, or with
//! the image and a fresh disk until it takes commands. It saves it there, and restores it once before
//! anybody else does. Killed at any moment it leaves a folder that the next build removes.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::AsFd,
        unix::{
            fs::{DirBuilderExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use microsandbox_snapshot::Digest;
use nix::sys::stat::{Mode, umask};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, timeout_at};

use super::{LOG, Templates, remove_tree};
use crate::{
    Confinement, Program, SandboxLock, SelectedVmm,
    checkpoint::{Checkpoint, SavedVm, Shape, UPPER},
    confine::{
        files::{Access, rules},
        process::Profile,
    },
    handover,
    program::Role,
    supervisor::{become_nobody, become_nobody_again, machine::Machine},
    sys,
    vmm::{self, DeviceSockets, DiskFormat, VmSpec, process::Vm},
};

/// Longest that a build may take. Idle processor time alone goes into it, so that a second of work
/// can take long on a busy host.
const WITHIN: Duration = Duration::from_mins(2);

/// What is to be built.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct BuildOrder {
    /// The shape that the machine has.
    pub(crate) shape: Shape,
    /// Where it goes.
    pub(crate) templates: Templates,
    pub(crate) vmm: SelectedVmm,
    /// The machine; its disks stand for places only.
    pub(crate) spec: VmSpec,
    /// How it and what builds it are confined.
    pub(crate) confinement: Confinement,
    /// Directives for the log.
    pub(crate) log: String,
}

impl BuildOrder {
    /// Whether the template has the root of an image mounted.
    fn has_root(&self) -> bool {
        !self.shape.root.is_empty()
    }
}

/// Starts a build and does not wait for it. `lock` is that of the shape; the builder holds it, too.
pub(crate) fn start(program: &Program, order: &BuildOrder, lock: &SandboxLock) -> io::Result<()> {
    let log = order.templates.root.join(LOG);
    let log = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(log)?;
    let (command, socket) = program.command(Role::Builder, &order.shape.key(), log.into())?;
    // The runtime collects it if it ends first.
    drop(tokio::process::Command::from(command).spawn()?);
    handover::send(&socket, Role::Builder, &profile(order)?, &[])?;
    handover::send(&socket, Role::Builder, order, &[lock.as_fd()])
}

/// A builder may open what its VMM may, and the templates.
fn profile(order: &BuildOrder) -> io::Result<Profile> {
    let mut spec = order.spec.clone();
    // Its own disks are with the templates; only that of the image is another's.
    spec.devices.disks.retain(|disk| disk.read_only && order.has_root());
    let mut files = vmm::files::list(&order.vmm, &spec)?;
    files.extend(rules(Access::Tree, [order.templates.path()]));
    Ok(Profile { confinement: order.confinement.clone(), files })
}

/// The role: builds one template, if it is wanted still.
pub(crate) fn run() -> ExitCode {
    match take_order().and_then(|(order, lock)| build_alone(&order, &lock)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::warn!(%error, "no template");
            ExitCode::FAILURE
        }
    }
}

fn take_order() -> io::Result<(BuildOrder, SandboxLock)> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let (order, [lock]): (BuildOrder, _) =
        handover::receive(&socket, Role::Builder).map_err(io::Error::other)?;
    // Neither the terminal nor the session that the sandbox belongs to ends it.
    let _already_leader = nix::unistd::setsid();
    umask(Mode::from_bits_truncate(0o077));
    sys::run_when_idle()?;
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&order.log))
        .with_writer(io::stderr)
        .with_ansi(false)
        .log_internal_errors(false)
        .init();
    let path = order.templates.lock_path(&order.shape);
    let lock = SandboxLock::from_fd(lock, &path)?;
    Ok((order, lock))
}

/// Builds while no other process builds the same.
fn build_alone(order: &BuildOrder, _held: &SandboxLock) -> io::Result<()> {
    let templates = &order.templates;
    let shape = &order.shape;
    if templates.place(shape).exists() {
        return Ok(());
    }
    let new = templates.new_path(shape);
    let built = build(order, &new)
        .and_then(|()| fs::rename(&new, templates.place(shape)).map_err(|error| error.to_string()));
    if let Err(why) = built {
        templates.note_failure(shape, why.clone());
        remove_tree(&new)?;
        return Err(io::Error::other(why));
    }
    templates.trim(Some(shape))
}

fn build(order: &BuildOrder, new: &Path) -> Result<(), String> {
    let prepared = match order.has_root() {
        true => Ok(with_upper(&order.spec, &new.join(UPPER))),
        false => with_empty_disks(&order.spec, new),
    };
    let spec = prepared.map_err(|error| format!("prepare {}: {error}", new.display()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let deadline = Instant::now() + WITHIN;
        let saved = save(order, &spec, new);
        let template = timeout_at(deadline, saved).await.map_err(|_| "it took too long")??;
        prove(order, &spec, (new, &Arc::new(template)), deadline).await
    })?;
    if !order.has_root() {
        for disk in &spec.devices.disks {
            fs::remove_file(&disk.path).map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}

/// The machine with another writable disk.
fn with_upper(spec: &VmSpec, upper: &Path) -> VmSpec {
    let mut spec = spec.clone();
    for disk in spec.devices.disks.iter_mut().filter(|disk| !disk.read_only) {
        disk.path = upper.to_owned();
    }
    spec
}

/// The machine with a file of size zero in place of each disk. The agent does not look at them.
fn with_empty_disks(spec: &VmSpec, folder: &Path) -> io::Result<VmSpec> {
    remove_tree(folder)?;
    fs::DirBuilder::new().mode(0o700).create(folder)?;
    let mut spec = spec.clone();
    for disk in &mut spec.devices.disks {
        disk.path = folder.join(&disk.id);
        disk.format = DiskFormat::Raw;
        fs::File::create_new(&disk.path)?;
    }
    Ok(spec)
}

async fn save(order: &BuildOrder, spec: &VmSpec, new: &Path) -> Result<Checkpoint, String> {
    let mut machine = start_machine(order, spec)?;
    let deadline = Instant::now() + WITHIN;
    machine.hello(deadline).await.map_err(|failure| failure.to_string())?;
    if order.has_root() {
        let became = become_nobody(&mut machine, deadline).await;
        became.map_err(|failure| failure.to_string())?;
    }
    let qmp = machine.qmp.as_ref().ok_or("this VMM can save nothing")?;
    let stopped = async {
        qmp.pause().await?;
        qmp.save_devices().await
    };
    let devices = stopped.await.map_err(|error| error.to_string())?;
    let upper = match order.has_root() {
        true => Some(digest_of(&new.join(UPPER)).map_err(|error| error.to_string())?),
        false => None,
    };
    let vm = SavedVm { memory: &machine.memory, devices: &devices, upper };
    let written = Checkpoint::write(new, order.shape.clone(), &vm);
    machine.kill().await;
    written.map_err(|error| error.to_string())
}

fn start_machine(order: &BuildOrder, spec: &VmSpec) -> Result<Machine, String> {
    // A machine that a template is of has no devices that need any.
    let sockets = &DeviceSockets::default();
    let vm = Vm { vmm: &order.vmm, spec, sockets, confinement: &order.confinement };
    Machine::start(&order.shape.key(), vm, None).map_err(|error| error.to_string())
}

fn digest_of(path: &Path) -> io::Result<Digest> {
    Digest::of_content(&fs::File::open(path)?)
}

/// Restores it once: the agent must answer.
async fn prove(
    order: &BuildOrder,
    spec: &VmSpec,
    (folder, template): (&Path, &Arc<Checkpoint>),
    deadline: Instant,
) -> Result<(), String> {
    let mut spec = VmSpec { incoming: true, ..spec.clone() };
    let copy = folder.join("proof.ext4");
    if order.has_root() {
        // What the guest does to its disk is not for those that come after it.
        template.clone_upper(&copy).map_err(|error| error.to_string())?;
        spec = with_upper(&spec, &copy);
    }
    let mut machine = start_machine(order, &spec)?;
    let proof = async {
        machine.restore(template, deadline).await?;
        match order.has_root() {
            true => become_nobody_again(&mut machine, deadline).await,
            false => machine.ping(deadline).await,
        }
    };
    proof.await.map_err(|failure| failure.to_string())?;
    machine.kill().await;
    if order.has_root() {
        fs::remove_file(&copy).map_err(|error| error.to_string())?;
    }
    Ok(())
}
