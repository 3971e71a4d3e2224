//! Making a sandbox, and undoing all of it when a step fails.

use std::{fs::File, io::Read, path::PathBuf, sync::Arc, time::Duration};

use microsandbox_db::{Catalogue, NewSandbox, SandboxRow};
use microsandbox_image::{Image, Progress, PullProgress, Silent, ext4};
use microsandbox_runtime::{
    AgentClient, LaunchConfig, SandboxDir, SandboxLock, launch, step, wire::ExecDefaults,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    BootMode, MicrosandboxError, MicrosandboxResult, Sandbox, SandboxConfig, SandboxHandle,
    clock::StartClock,
    config::STOP_TIMEOUT,
    history,
    home::{Home, Machinery},
    image,
    names::hostname_from_sandbox_name,
    snapshot::Origin,
    thread::on_thread,
};

/// Whose the sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The process's that creates it; it ends with that process.
    Attached,
    /// Nobody's; it lives on.
    Detached,
}

/// Longest boot. Emulated on a busy machine it takes seconds; what takes minutes does not come.
const BOOT_TIMEOUT: Duration = Duration::from_secs(120);

const RANDOM: &str = "/dev/urandom";

/// Receives what a pull tells while a sandbox is created.
#[derive(Debug)]
pub struct PullProgressHandle {
    events: mpsc::UnboundedReceiver<PullProgress>,
}

impl PullProgressHandle {
    /// The next event; `None` once there will be no more.
    pub async fn recv(&mut self) -> Option<PullProgress> {
        self.events.recv().await
    }
}

pub(crate) fn with_progress(
    config: SandboxConfig,
    mode: Mode,
) -> (PullProgressHandle, JoinHandle<MicrosandboxResult<Sandbox>>) {
    let (sender, events) = mpsc::unbounded_channel();
    let progress = Arc::new(move |event| {
        // A caller that dropped the handle does not want to know.
        let _unheard = sender.send(event);
    });
    let task = tokio::spawn(create(config, mode, progress));
    (PullProgressHandle { events }, task)
}

pub(crate) async fn create_silently(
    config: SandboxConfig,
    mode: Mode,
) -> MicrosandboxResult<Sandbox> {
    create(config, mode, Arc::new(Silent)).await
}

/// Creates and starts a sandbox.
///
/// The work is done on a task of its own: when the caller drops this future, that task notices and
/// undoes what it has done.
async fn create(
    config: SandboxConfig,
    mode: Mode,
    progress: Arc<dyn Progress>,
) -> MicrosandboxResult<Sandbox> {
    config.validate()?;
    let home = Home::from_env()?;
    let (wanted, unwanted) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let mut half_made = HalfMade::default();
        let made = tokio::select! {
            made = make(&home, config, mode, &*progress, &mut half_made) => made,
            _ = unwanted => Err(MicrosandboxError::InvalidConfig("creation was given up".into())),
        };
        match made {
            Ok(sandbox) => Ok(sandbox),
            Err(error) => {
                half_made.undo().await;
                Err(error)
            }
        }
    });
    let made = task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    drop(wanted);
    made
}

async fn make(
    home: &Home,
    mut config: SandboxConfig,
    mode: Mode,
    progress: &dyn Progress,
    half_made: &mut HalfMade,
) -> MicrosandboxResult<Sandbox> {
    let mut clock = StartClock::start();
    home.ensure()?;
    let machinery = home.machinery().await?;
    clock.times.found_us = clock.elapsed_us();
    let origin = Origin::find(home, &mut config).await?;
    let (image, _hold) = origin.image(home, &mut config, progress).await?;
    config.merge_image_defaults(image.config());
    config.manifest_digest = Some(image.digest().to_string());
    clock.times.image_us = clock.elapsed_us();
    let catalogue = home.catalogue().await?;
    heal(home, &catalogue).await;
    clock.times.catalogue_us = clock.elapsed_us();
    if config.replace_existing {
        replace(home, &config).await?;
    }
    let dir = home.sandbox_dir(&config.name)?;
    let lock = claim(&catalogue, &dir, &config.name).await?;
    half_made.dir = Some(dir.clone());
    step::reached("create.claimed");
    origin.make_upper(&dir, config.upper_bytes()).await?;
    clock.times.disk_us = clock.elapsed_us();
    step::reached("create.formatted");
    let new = NewSandbox {
        name: config.name.clone(),
        config_json: to_json(&config)?,
        // Until it runs. If this process dies first, the next command clears the sandbox away.
        ephemeral: true,
        manifest_digest: config.manifest_digest.clone(),
        labels: config.labels.clone(),
    };
    let row = catalogue.insert_sandbox(&new).await?;
    let id = row.id;
    half_made.row = Some((catalogue.clone(), row));
    step::reached("create.defined");
    let sandbox = boot((&machinery, clock), &image, config, (dir, lock)).await?;
    step::reached("create.booted");
    if !sandbox.config().ephemeral {
        catalogue.keep_sandbox(id).await?;
    }
    step::reached("create.kept");
    settle(sandbox, mode).await
}

/// Starts a sandbox that is defined and whose disks are there.
pub(crate) async fn start(
    home: &Home,
    config: SandboxConfig,
    mode: Mode,
) -> MicrosandboxResult<Sandbox> {
    let mut clock = StartClock::start();
    let machinery = home.machinery().await?;
    clock.times.found_us = clock.elapsed_us();
    let image = image::pinned(home, &config)?;
    clock.times.image_us = clock.elapsed_us();
    let catalogue = home.catalogue().await?;
    clock.times.catalogue_us = clock.elapsed_us();
    let dir = home.sandbox_dir(&config.name)?;
    let lock = dir.lock().map_err(|error| match error {
        microsandbox_runtime::Error::Locked { .. } => {
            MicrosandboxError::SandboxStillRunning(config.name.clone())
        }
        other => other.into(),
    })?;
    let row = catalogue.sandbox(&config.name).await?;
    let row = row.ok_or_else(|| MicrosandboxError::SandboxNotFound(config.name.clone()))?;
    step::reached("start.locked");
    // This run's records will take the place of the last one's.
    history::keep(&catalogue, &row, &dir, &lock).await?;
    step::reached("start.remembered");
    settle(boot((&machinery, clock), &image, config, (dir, lock)).await?, mode).await
}

/// Gives the sandbox to whom it belongs.
async fn settle(sandbox: Sandbox, mode: Mode) -> MicrosandboxResult<Sandbox> {
    if mode == Mode::Detached {
        sandbox.release().await?;
    }
    Ok(sandbox)
}

async fn boot(
    (machinery, mut clock): (&Machinery, StartClock),
    image: &Image,
    config: SandboxConfig,
    (dir, lock): (SandboxDir, SandboxLock),
) -> MicrosandboxResult<Sandbox> {
    clock.times.launch_us = clock.elapsed_us();
    let orders = LaunchConfig {
        name: config.name.clone(),
        dir: dir.path().to_owned(),
        run_id: format!("{:x}-{:x}", clock.asked_at_us, std::process::id()),
        vcpus: config.cpus,
        memory_mib: config.memory_mib,
        guest: machinery.guest.clone(),
        lower: image.disk().to_owned(),
        vmm: machinery.vmm.clone(),
        templates: match config.boot.unwrap_or(machinery.boot) {
            BootMode::Cold => None,
            BootMode::Template => Some(machinery.templates.clone()),
        },
        digests: machinery.digests.clone(),
        hostname: config
            .hostname
            .clone()
            .unwrap_or_else(|| hostname_from_sandbox_name(&config.name)),
        defaults: ExecDefaults {
            env: config.env.clone(),
            cwd: config.workdir.clone(),
            user: config.user.clone(),
        },
        boot_timeout: BOOT_TIMEOUT,
        stop_timeout: STOP_TIMEOUT,
        idle_timeout: config.policy.idle_timeout_secs.map(Duration::from_secs),
        max_duration: config.policy.max_duration_secs.map(Duration::from_secs),
        confinement: machinery.confinement.clone(),
        ephemeral: config.ephemeral,
        asked_at_us: clock.asked_at_us,
        boot: clock.times,
        log: machinery.log.clone(),
    };
    let launched = launch(&machinery.program, &orders, lock).await?;
    let client = AgentClient::connect(&dir).await?;
    Ok(Sandbox::new(config, dir, client, Some(launched.owner)))
}

/// Takes a name that nobody has.
async fn claim(
    catalogue: &Catalogue,
    dir: &SandboxDir,
    name: &str,
) -> MicrosandboxResult<SandboxLock> {
    let taken = || MicrosandboxError::SandboxAlreadyExists(name.to_owned());
    if catalogue.sandbox(name).await?.is_some() {
        return Err(taken());
    }
    let lock = match dir.create_locked() {
        Err(microsandbox_runtime::Error::Locked { .. }) => return Err(taken()),
        other => other?,
    };
    // Somebody may have finished between the two looks.
    if catalogue.sandbox(name).await?.is_some() {
        return Err(taken());
    }
    Ok(lock)
}

async fn replace(home: &Home, config: &SandboxConfig) -> MicrosandboxResult<()> {
    match SandboxHandle::find(home, &config.name).await {
        Ok(existing) => {
            existing.stop_within(config.replace_with_timeout).await?;
            step::reached("replace.stopped");
            existing.remove().await?;
            step::reached("replace.removed");
            Ok(())
        }
        Err(MicrosandboxError::SandboxNotFound(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(crate) async fn format_upper(path: PathBuf, size_bytes: u64) -> MicrosandboxResult<()> {
    let mut uuid = [0; 16];
    File::open(RANDOM)
        .and_then(|mut random| random.read_exact(&mut uuid))
        .map_err(MicrosandboxError::file("read", RANDOM))?;
    let format = move || ext4::format(&path, &ext4::UpperOptions::new(size_bytes, uuid), &[]);
    on_thread("format-upper", format).await
}

pub(crate) fn to_json(config: &SandboxConfig) -> MicrosandboxResult<String> {
    serde_json::to_string(config)
        .map_err(|source| MicrosandboxError::Json { name: config.name.clone(), source })
}

/// Removes what commands that were killed have left: directories without a row, and ephemeral
/// sandboxes whose run is over. Failures are logged; the next command tries again.
pub(crate) async fn heal(home: &Home, catalogue: &Catalogue) {
    if let Err(error) = try_heal(home, catalogue).await {
        tracing::warn!(%error, "could not clean up after an earlier command");
    }
}

/// As [`heal`], where there is a catalogue.
pub(crate) async fn heal_existing(home: &Home) -> MicrosandboxResult<()> {
    match home.existing_catalogue()? {
        Some(_) => try_heal(home, &home.catalogue().await?).await,
        None => Ok(()),
    }
}

async fn try_heal(home: &Home, catalogue: &Catalogue) -> MicrosandboxResult<()> {
    let rows = catalogue.sandboxes(&microsandbox_db::SandboxFilter::default()).await?;
    for row in rows.iter().filter(|row| row.ephemeral) {
        let dir = home.sandbox_dir(&row.name)?;
        // A held lock means that it runs or is being made.
        if let Ok(lock) = dir.create_locked() {
            history::keep(catalogue, row, &dir, &lock).await?;
            catalogue.remove_sandbox(row.id).await?;
            dir.remove(&lock)?;
        }
    }
    let Ok(entries) = std::fs::read_dir(home.sandboxes_path()) else { return Ok(()) };
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let known = rows.iter().any(|row| row.name == name);
        let Some(dir) = (!known).then(|| home.sandbox_dir(&name).ok()).flatten() else { continue };
        if let Ok(lock) = dir.lock()
            && catalogue.sandbox(&name).await?.is_none()
        {
            dir.remove(&lock)?;
        }
    }
    Ok(())
}

/// What a creation has made so far.
#[derive(Debug, Default)]
struct HalfMade {
    dir: Option<SandboxDir>,
    row: Option<(Catalogue, SandboxRow)>,
}

impl HalfMade {
    /// Takes it all back. What cannot be taken back is logged, and healed by the next command.
    async fn undo(self) {
        if let Some((catalogue, row)) = self.row
            && let Err(error) = catalogue.remove_sandbox(row.id).await
        {
            tracing::warn!(%error, sandbox = row.name, "could not undo the definition");
        }
        let Some(dir) = self.dir else { return };
        // The supervisor, if there was one, lets go of the lock when the VM is gone. That of an
        // ephemeral sandbox has then removed the directory itself.
        let undo = move || match dir.lock_when_free() {
            Err(_) if !dir.path().exists() => Ok(()),
            lock => dir.remove(&lock?),
        };
        if let Err(error) = on_thread("undo-creation", undo).await {
            tracing::warn!(%error, "could not undo the directory");
        }
    }
}
