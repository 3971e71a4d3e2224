//! Saving a machine while it runs: memory, devices and disk of one moment.
//!
//! ```text
//!  hold the link ─ held ─▶ pause ─▶ devices ─▶ memory, and beside it the disk ─▶ go on ─▶ release ─▶ digests
//!                          └───────────── the guest stands still ────────────┘
//! ```
//!
//! While the link is held nothing is on its way between host and agent, so the machine that goes on
//! from what was saved finds a link without halves of frames.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use microsandbox_snapshot::clone_file;
use tokio::{
    sync::oneshot,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use crate::{
    checkpoint::{CheckpointError, SavedVm, Shape, StoredVm},
    error::explained,
    link::FrameSender,
    step,
    vmm::qemu::qmp::Qmp,
};

/// Longest time for the agent to hold the link; it does so at once unless the guest hangs.
const HELD_WITHIN: Duration = Duration::from_secs(10);

/// Name of the disk's copy in a saved machine.
const UPPER: &str = "upper.ext4";

/// Everything that saving a machine takes.
#[derive(Debug)]
pub(super) struct SaveOrder {
    pub(super) qmp: Qmp,
    pub(super) agent: FrameSender,
    pub(super) memory: Arc<File>,
    pub(super) shape: Shape,
    /// The writable disk.
    pub(super) upper: PathBuf,
    /// The folder that is made.
    pub(super) into: PathBuf,
    /// It stands still, and is to do so afterwards.
    pub(super) is_paused: bool,
    /// Tells that the agent holds the link.
    pub(super) held: oneshot::Receiver<()>,
}

/// Why a machine was not saved.
#[derive(Debug)]
pub(super) struct Unsaved {
    pub(super) detail: String,
    /// It is the host's disk that has no room.
    pub(super) disk_full: bool,
}

impl From<String> for Unsaved {
    fn from(detail: String) -> Self {
        Self { detail, disk_full: false }
    }
}

/// Saves the machine; gives how long the guest stood still. It goes on in any case, and a failure
/// leaves no folder.
pub(super) async fn save(mut order: SaveOrder) -> Result<Duration, Unsaved> {
    let made = DirBuilder::new().mode(0o700).create(&order.into);
    made.map_err(|source| {
        not_written(&CheckpointError::Write { path: order.into.clone(), source })
    })?;
    let saved = order.save().await;
    let still = order.go_on(saved.is_ok()).await;
    let sealed = match (saved, still) {
        (Ok((began, stored)), Ok(until)) => {
            seal(stored, order.shape.clone()).await.map(|()| until.duration_since(began))
        }
        (Err(why), _) => Err(why),
        (Ok(_), Err(why)) => Err(why.into()),
    };
    sealed.inspect_err(|_| remove(&order.into))
}

/// Makes a checkpoint of what was stored, while the guest goes on.
async fn seal(stored: StoredVm, shape: Shape) -> Result<(), Unsaved> {
    let sealed = spawn_blocking(move || stored.seal(shape)).await;
    let sealed = sealed.map_err(|error| error.to_string())?;
    sealed.map(drop).map_err(|error| not_written(&error))
}

/// Removes a saved machine that nobody took away.
pub(super) fn remove(folder: &Path) {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, folder = %folder.display(), "a saved machine stays");
        }
        _ => {}
    }
}

impl SaveOrder {
    /// Gives when the guest began to stand still, and what it was then.
    async fn save(&mut self) -> Result<(Instant, StoredVm), Unsaved> {
        let told = |error: crate::vmm::qemu::qmp::QmpError| error.to_string();
        if self.is_paused {
            // Only a guest that runs can hold its link.
            self.qmp.resume().await.map_err(told)?;
        }
        self.flush().await?;
        self.agent.hold();
        let held = timeout(HELD_WITHIN, &mut self.held).await;
        if !matches!(held, Ok(Ok(()))) {
            let why = "the agent does not hold its link: it is older, or the guest hangs";
            return Err(why.to_owned().into());
        }
        let began = Instant::now();
        self.qmp.pause().await.map_err(told)?;
        let devices = self.qmp.save_devices().await.map_err(told)?;
        step::reached("save.still");
        let (memory, into) = (Arc::clone(&self.memory), self.into.clone());
        let stored = spawn_blocking(move || {
            let vm = SavedVm { memory: &memory, devices: &devices, upper: None };
            StoredVm::write(&into, &vm).map_err(|error| not_written(&error))
        });
        let (upper, to) = (self.upper.clone(), self.into.join(UPPER));
        let disk = spawn_blocking(move || copy_disk(&upper, &to));
        let (stored, disk) = tokio::join!(stored, disk);
        let stored = stored.map_err(|error| error.to_string())??;
        disk.map_err(|error| error.to_string())??;
        step::reached("save.written");
        Ok((began, stored))
    }

    /// Brings what the guest has written to the disk. A VMM that stops does so too (`do_vm_stop` in
    /// QEMU's `softmmu/cpus.c`), and has little left to do then.
    async fn flush(&self) -> Result<(), String> {
        let upper = self.upper.clone();
        let flushed = spawn_blocking(move || File::open(upper)?.sync_data()).await;
        let flushed = flushed.map_err(io::Error::other).and_then(|flushed| flushed);
        flushed.map_err(|error| format!("flush {}: {error}", self.upper.display()))
    }

    /// Gives when the guest went on, or would have.
    async fn go_on(&self, was_saved: bool) -> Result<Instant, String> {
        let went_on = match (self.is_paused, was_saved) {
            (true, false) => self.qmp.pause().await,
            (true, true) => Ok(()),
            (false, _) => self.qmp.resume().await,
        };
        self.agent.release();
        went_on.map(|()| Instant::now()).map_err(|error| error.to_string())
    }
}

fn copy_disk(from: &Path, to: &Path) -> Result<(), Unsaved> {
    let copy = || {
        let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        clone_file(&File::open(from)?, &new)
    };
    copy().map_err(|source| not_written(&CheckpointError::Write { path: to.to_owned(), source }))
}

fn not_written(error: &CheckpointError) -> Unsaved {
    let disk_full = matches!(
        error,
        CheckpointError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull
    );
    Unsaved { detail: explained(error), disk_full }
}
