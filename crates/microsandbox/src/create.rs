//! Making a sandbox, and undoing all of it when a step fails.

use std::{
    fs::File,
    io::Read,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use microsandbox_db::{Catalogue, NewSandbox, SandboxId, SandboxRow};
use microsandbox_image::{Image, Progress, PullProgress, Silent, ext4};
use microsandbox_runtime::{
    AgentClient, Devices, LaunchConfig, LockMark, SandboxDir, SandboxLock, StartingPoint, launch,
    step, wire::ExecDefaults,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    BootMode, MicrosandboxError, MicrosandboxResult, Sandbox, SandboxConfig, SandboxHandle,
    clock::StartClock,
    config::STOP_TIMEOUT,
    handle::in_use,
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

/// Longest wait for a name that nobody has for good and that is not free, which takes milliseconds.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a name is looked at whose owner is only just coming, or is going: no event tells which.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    let (progress, events) = progress();
    (events, tokio::spawn(create(config, mode, progress)))
}

pub(crate) fn define_with_progress(
    config: SandboxConfig,
) -> (PullProgressHandle, JoinHandle<MicrosandboxResult<SandboxHandle>>) {
    let (progress, events) = progress();
    (events, tokio::spawn(define_only(config, progress)))
}

fn progress() -> (Arc<dyn Progress>, PullProgressHandle) {
    let (sender, events) = mpsc::unbounded_channel();
    let progress = Arc::new(move |event| {
        // A caller that dropped the handle does not want to know.
        let _unheard = sender.send(event);
    });
    (progress, PullProgressHandle { events })
}

pub(crate) async fn create_silently(
    config: SandboxConfig,
    mode: Mode,
) -> MicrosandboxResult<Sandbox> {
    create(config, mode, Arc::new(Silent)).await
}

/// Creates a sandbox that goes on from what another was. It goes when its maker does, until
/// [`Catalogue::keep_sandboxes`] keeps it.
pub(crate) async fn create_unkept(
    config: SandboxConfig,
    origin: Origin,
) -> MicrosandboxResult<(Sandbox, SandboxId)> {
    let half_made = Arc::new(HalfMade::new(Arc::new(Silent)));
    undone_on_failure(Arc::clone(&half_made), async move {
        let (sandbox, _, id) = make(config, Some(origin), &half_made).await?;
        Ok((sandbox, id))
    })
    .await
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
    let half_made = Arc::new(HalfMade::new(progress));
    undone_on_failure(Arc::clone(&half_made), async move {
        let (sandbox, catalogue, id) = make(config, None, &half_made).await?;
        if !sandbox.config().ephemeral {
            catalogue.keep_sandboxes(&[id]).await?;
        }
        step::reached("create.kept");
        settle(sandbox, mode).await
    })
    .await
}

/// Makes a sandbox that runs, and is on record as one that goes when its maker does.
async fn make(
    mut config: SandboxConfig,
    origin: Option<Origin>,
    half_made: &HalfMade,
) -> MicrosandboxResult<(Sandbox, Catalogue, SandboxId)> {
    config.validate()?;
    let mut clock = StartClock::start();
    let home = Home::from_env()?;
    home.ensure()?;
    let machinery = home.machinery().await?;
    clock.times.found_us = clock.elapsed_us();
    let origin = match origin {
        Some(origin) => origin,
        None => Origin::find(&home, Some(machinery.vmm.kind), &mut config).await?,
    };
    let defined = define(&home, (config, origin), clock, half_made).await?;
    let Defined { config, image, from, catalogue, id, dir, lock, clock } = defined;
    let kept = (!config.ephemeral).then(|| dir.clone());
    let sandbox = boot((&machinery, clock), (&image, from), config, (dir, lock)).await?;
    step::reached("create.booted");
    if let Some(dir) = kept {
        sync_upper(dir).await?;
    }
    Ok((sandbox, catalogue, id))
}

pub(crate) async fn define_silently(config: SandboxConfig) -> MicrosandboxResult<SandboxHandle> {
    define_only(config, Arc::new(Silent)).await
}

/// Defines a sandbox and does not start it. As [`create`] in all else.
async fn define_only(
    mut config: SandboxConfig,
    progress: Arc<dyn Progress>,
) -> MicrosandboxResult<SandboxHandle> {
    config.validate()?;
    if config.ephemeral {
        let message = "an ephemeral sandbox exists only while it runs: it cannot be just defined";
        return Err(MicrosandboxError::InvalidConfig(message.into()));
    }
    let home = Home::from_env()?;
    let half_made = Arc::new(HalfMade::new(progress));
    undone_on_failure(Arc::clone(&half_made), async move {
        home.ensure()?;
        let origin = Origin::find(&home, None, &mut config).await?;
        let start = StartClock::start();
        let defined = define(&home, (config, origin), start, &half_made).await?;
        sync_upper(defined.dir).await?;
        defined.catalogue.keep_sandboxes(&[defined.id]).await?;
        drop(defined.lock);
        SandboxHandle::find(&home, &defined.config.name).await
    })
    .await
}

/// Does `work` on a task of its own. It is undone when it fails and when the caller gives it up.
async fn undone_on_failure<T: Send + 'static>(
    half_made: Arc<HalfMade>,
    work: impl Future<Output = MicrosandboxResult<T>> + Send + 'static,
) -> MicrosandboxResult<T> {
    let (wanted, unwanted) = oneshot::channel::<()>();
    let task = tokio::spawn(async move {
        let made = tokio::select! {
            made = work => made,
            _ = unwanted => Err(MicrosandboxError::InvalidConfig("creation was given up".into())),
        };
        if made.is_err() {
            half_made.undo().await;
        }
        made
    });
    let made = task.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
    drop(wanted);
    made
}

/// A sandbox that is in the catalogue and has a disk. This process holds it.
#[derive(Debug)]
struct Defined {
    config: SandboxConfig,
    image: Image,
    /// What its machine goes on from.
    from: StartingPoint,
    catalogue: Catalogue,
    id: SandboxId,
    dir: SandboxDir,
    lock: SandboxLock,
    clock: StartClock,
}

async fn define(
    home: &Home,
    (mut config, origin): (SandboxConfig, Origin),
    mut clock: StartClock,
    half_made: &HalfMade,
) -> MicrosandboxResult<Defined> {
    let (image, _hold) = origin.image(home, &mut config, &*half_made.progress).await?;
    config.merge_image_defaults(image.config());
    config.manifest_digest = Some(image.digest().to_string());
    clock.times.image_us = clock.elapsed_us();
    let catalogue = home.catalogue().await?;
    heal(home, &catalogue).await;
    clock.times.catalogue_us = clock.elapsed_us();
    let dir = home.sandbox_dir(&config.name)?;
    let lock = match config.replace_existing {
        true => replace(home, &catalogue, &dir, &config).await?,
        false => claim(home, &catalogue, &dir, &config.name).await?,
    };
    half_made.made_dir(dir.clone(), lock.mark(&dir.lock_path())?);
    step::reached("create.claimed");
    let from = origin.starting_point(&image, config.upper_bytes());
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
    half_made.defined(catalogue.clone(), row);
    step::reached("create.defined");
    Ok(Defined { config, image, from, catalogue, id, dir, lock, clock })
}

/// Starts a sandbox that is defined and whose disks are there.
pub(crate) async fn start(
    home: &Home,
    row: &SandboxRow,
    mode: Mode,
) -> MicrosandboxResult<Sandbox> {
    let mut clock = StartClock::start();
    let config = from_json(row)?;
    let machinery = home.machinery().await?;
    clock.times.found_us = clock.elapsed_us();
    let image = image::pinned(home, &config)?;
    clock.times.image_us = clock.elapsed_us();
    let catalogue = home.catalogue().await?;
    clock.times.catalogue_us = clock.elapsed_us();
    let dir = home.sandbox_dir(&row.name)?;
    if !dir.upper_path().exists() {
        let (name, path) = (row.name.clone(), dir.upper_path());
        return Err(MicrosandboxError::SandboxStateMissing { name, path });
    }
    let lock = dir.lock().map_err(|error| in_use(&dir, &row.name, error))?;
    // Somebody may have removed it, and made another of that name, since it was looked up.
    if catalogue.sandbox(&row.name).await?.is_none_or(|now| now.id != row.id) {
        return Err(MicrosandboxError::SandboxNotFound(row.name.clone()));
    }
    step::reached("start.locked");
    let from = match config.snapshot {
        // It was defined to begin with another's disk, and has not become a machine of its own yet.
        Some(_) if !history::has_begun(&catalogue, row, &dir).await? => StartingPoint::OthersDisk,
        _ => StartingPoint::OwnDisk,
    };
    // This run's records will take the place of the last one's.
    history::keep(&catalogue, row, &dir, &lock).await?;
    step::reached("start.remembered");
    let place = (dir, lock);
    settle(boot((&machinery, clock), (&image, from), config, place).await?, mode).await
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
    (image, from): (&Image, StartingPoint),
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
        devices: Devices::default(),
        templates: match config.boot.unwrap_or(machinery.boot) {
            BootMode::Cold => None,
            BootMode::Template => Some(machinery.templates.clone()),
        },
        from,
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
///
/// Somebody may hold its directory and it still be free: a command that clears away what another has
/// left. Who creates a sandbox of that name has it in the catalogue soon; until then it is not known. Its
/// row is there from then on, and stays for a moment when that one dies.
async fn claim(
    home: &Home,
    catalogue: &Catalogue,
    dir: &SandboxDir,
    name: &str,
) -> MicrosandboxResult<SandboxLock> {
    let deadline = Instant::now() + CLAIM_TIMEOUT;
    loop {
        if let Some(row) = catalogue.sandbox(name).await? {
            let may_go = row.ephemeral && !dir.has_supervisor()?;
            if !may_go || Instant::now() >= deadline {
                return Err(MicrosandboxError::SandboxAlreadyExists(name.to_owned()));
            }
            sleep(LOOK_AGAIN).await;
            heal(home, catalogue).await;
            continue;
        }
        let lock = match dir.create_locked() {
            Err(microsandbox_runtime::Error::Locked { .. }) if Instant::now() < deadline => {
                let dir = dir.clone();
                on_thread("await-change", move || dir.wait_for_change()).await?;
                continue;
            }
            other => other.map_err(|error| in_use(dir, name, error))?,
        };
        // Somebody may have finished between the two looks.
        if catalogue.sandbox(name).await?.is_some() {
            continue;
        }
        if !dir.upper_path().exists() && dir.run_record()?.is_none() {
            return Ok(lock);
        }
        // What a removal that was killed has left.
        dir.remove(&lock)?;
    }
}

/// Takes a name from whoever has it. Of several who want it, the last one gets it: each replaces the
/// one before, and stops wanting it when it is replaced itself.
async fn replace(
    home: &Home,
    catalogue: &Catalogue,
    dir: &SandboxDir,
    config: &SandboxConfig,
) -> MicrosandboxResult<SandboxLock> {
    loop {
        match SandboxHandle::find(home, &config.name).await {
            Ok(existing) => {
                existing.stop_within(config.replace_with_timeout).await?;
                step::reached("replace.stopped");
                // One that was ephemeral is gone by itself.
                if existing.remove_unless_in_use().await? {
                    step::reached("replace.removed");
                }
            }
            Err(MicrosandboxError::SandboxNotFound(_)) => {}
            Err(error) => return Err(error),
        }
        match claim(home, catalogue, dir, &config.name).await {
            Err(MicrosandboxError::SandboxAlreadyExists(_)) => {
                let dir = dir.clone();
                on_thread("end-supervisor", move || dir.end_supervisor()).await?;
            }
            claimed => return claimed,
        }
    }
}

pub(crate) async fn format_upper(path: PathBuf, size_bytes: u64) -> MicrosandboxResult<()> {
    let mut uuid = [0; 16];
    File::open(RANDOM)
        .and_then(|mut random| random.read_exact(&mut uuid))
        .map_err(MicrosandboxError::file("read", RANDOM))?;
    let mut options = ext4::UpperOptions::new(size_bytes, uuid);
    // `sync_upper` does it once the sandbox runs, if it is kept at all.
    options.is_synced = false;
    on_thread("format-upper", move || ext4::format(&path, &options, &[])).await
}

/// Brings the writable disk to the host's: a sandbox that is kept has one whatever becomes of the host.
async fn sync_upper(dir: SandboxDir) -> MicrosandboxResult<()> {
    let sync = move || {
        [dir.upper_path(), dir.path().to_owned()].into_iter().try_for_each(|path| {
            let synced = File::open(&path).and_then(|file| file.sync_all());
            synced.map_err(MicrosandboxError::file("sync", &path))
        })
    };
    on_thread("sync-upper", sync).await
}

pub(crate) fn to_json(config: &SandboxConfig) -> MicrosandboxResult<String> {
    serde_json::to_string(config)
        .map_err(|source| MicrosandboxError::Json { name: config.name.clone(), source })
}

pub(crate) fn from_json(row: &SandboxRow) -> MicrosandboxResult<SandboxConfig> {
    serde_json::from_str(&row.config_json)
        .map_err(|source| MicrosandboxError::Json { name: row.name.clone(), source })
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
            let now = catalogue.sandbox(&row.name).await?;
            // It may have come to stay since it was listed, or be another one by now.
            if now.as_ref().is_some_and(|now| !now.ephemeral || now.id != row.id) {
                continue;
            }
            history::keep(catalogue, row, &dir, &lock).await?;
            catalogue.remove_sandbox(row.id).await?;
            dir.remove(&lock)?;
        }
    }
    SandboxDir::finish_removals(&home.sandboxes_path())?;
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
struct HalfMade {
    /// Whoever follows the creation knows by its end that all is undone.
    progress: Arc<dyn Progress>,
    dir: OnceLock<(SandboxDir, LockMark)>,
    row: OnceLock<(Catalogue, SandboxRow)>,
}

impl HalfMade {
    fn new(progress: Arc<dyn Progress>) -> Self {
        Self { progress, dir: OnceLock::new(), row: OnceLock::new() }
    }

    fn made_dir(&self, dir: SandboxDir, mark: LockMark) {
        self.dir.set((dir, mark)).expect("a creation makes one directory");
    }

    fn defined(&self, catalogue: Catalogue, row: SandboxRow) {
        self.row.set((catalogue, row)).expect("a creation makes one row");
    }

    /// Takes it all back. What cannot be taken back is logged, and healed by the next command.
    async fn undo(self: Arc<Self>) {
        let half_made = Arc::clone(&self);
        // The supervisor, if there was one, lets go of the lock when the VM is gone. Nobody can have
        // the name as long as it is defined, so the definition goes under the lock.
        let retaken = on_thread("undo-creation", move || match half_made.dir.get() {
            Some((dir, mark)) => dir.lock_again_when_free(mark).map_err(MicrosandboxError::from),
            None => Ok(None),
        });
        let lock = retaken.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "could not hold what is to be undone");
            None
        });
        if let Some((catalogue, row)) = self.row.get()
            && let Err(error) = catalogue.remove_sandbox(row.id).await
        {
            tracing::warn!(%error, sandbox = row.name, "could not undo the definition");
        }
        // Without a lock it is gone: with its ephemeral run, or because somebody replaced it.
        if let (Some((dir, _)), Some(lock)) = (self.dir.get(), lock)
            && let Err(error) = dir.remove(&lock)
        {
            tracing::warn!(%error, "could not undo the directory");
        }
    }
}
