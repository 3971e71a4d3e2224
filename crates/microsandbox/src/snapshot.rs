//! Snapshots: what a sandbox was at one moment, to begin others from.

mod builder;
mod fork;
mod portable;
mod restore;
mod take;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use chrono::{DateTime, Utc};
use microsandbox_snapshot::{Manifest, Snapshot as StoredSnapshot, SnapshotStore};

use crate::{MicrosandboxError, MicrosandboxResult, SandboxConfig, home::Home, thread::on_thread};

pub use builder::{SnapshotBuilder, SnapshotConfig};
pub use portable::{SnapshotLoadOptions, SnapshotSaveOptions};

pub(crate) use fork::fork;
pub(crate) use restore::Origin;

/// Name of the writable disk among a snapshot's files.
const UPPER: &str = "upper.ext4";

/// Name of the folder of a saved machine among them.
const CHECKPOINT: &str = "checkpoint";

/// A snapshot: the disk of a sandbox, and of a running one its memory and all of its state, too.
/// Restored by
/// [`SandboxBuilder::from_snapshot`](crate::SandboxBuilder::from_snapshot), any number of times.
///
/// It needs the image beneath the disk, which it pins by digest: no collection removes it while the
/// snapshot is in the home.
#[derive(Debug, Clone)]
pub struct Snapshot {
    stored: StoredSnapshot,
    definition: SandboxConfig,
    still: Option<Duration>,
}

impl Snapshot {
    /// Begins the description of a snapshot to be taken.
    pub fn builder(name: impl Into<String>) -> SnapshotBuilder {
        SnapshotBuilder::new(name)
    }

    /// Takes a snapshot of a stopped sandbox, or with [`SnapshotBuilder::full`] of a running one. The
    /// sandbox is as it was afterwards.
    ///
    /// # Errors
    /// [`MicrosandboxError::SandboxNotFound`], [`MicrosandboxError::SnapshotSandboxRunning`],
    /// [`MicrosandboxError::SnapshotAlreadyExists`] and others; nothing is left then.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no snapshot or the whole one.
    pub async fn create(config: SnapshotConfig) -> MicrosandboxResult<Self> {
        take::take(&Home::from_env()?, config).await
    }

    /// The snapshot of that name or id in the home, or in the directory that a path names.
    ///
    /// # Errors
    /// [`MicrosandboxError::SnapshotNotFound`], [`MicrosandboxError::SnapshotIntegrity`].
    pub fn open(name_or_path: impl AsRef<Path>) -> MicrosandboxResult<Self> {
        Self::find(&Home::from_env()?, name_or_path.as_ref())
    }

    /// The snapshot of that name or id in the home.
    ///
    /// # Errors
    /// As [`Snapshot::open`].
    pub fn get(name: &str) -> MicrosandboxResult<Self> {
        Self::new(Home::from_env()?.snapshots().get(name)?)
    }

    /// Every snapshot of the home, ordered by name. Those that cannot be read are told in the log.
    ///
    /// # Errors
    /// [`MicrosandboxError::Snapshot`] when the directory cannot be read.
    pub fn list() -> MicrosandboxResult<Vec<Self>> {
        list(&Home::from_env()?.snapshots())
    }

    /// As [`Snapshot::list`], of a directory that snapshots were put into with
    /// [`SnapshotBuilder::dest_dir`].
    ///
    /// # Errors
    /// As [`Snapshot::list`].
    pub fn list_dir(path: impl Into<PathBuf>) -> MicrosandboxResult<Vec<Self>> {
        list(&SnapshotStore::open(path))
    }

    /// Removes a snapshot of the home. What was restored from it is not touched.
    ///
    /// # Errors
    /// [`MicrosandboxError::SnapshotNotFound`].
    pub async fn remove(name: &str) -> MicrosandboxResult<()> {
        let (store, name) = (Home::from_env()?.snapshots(), name.to_owned());
        let remove = move || {
            store.sweep()?;
            store.remove(&name)
        };
        on_thread("remove-snapshot", remove).await
    }

    /// Reads all of it and compares it with its digests.
    ///
    /// # Errors
    /// [`MicrosandboxError::SnapshotIntegrity`] naming what differs.
    pub async fn verify(&self) -> MicrosandboxResult<()> {
        let stored = self.stored.clone();
        on_thread("verify-snapshot", move || stored.verify()).await
    }

    /// Writes a snapshot to one file, `.tar.zst`, which is there whole or not at all.
    ///
    /// # Errors
    /// [`MicrosandboxError::SnapshotIntegrity`], [`MicrosandboxError::Snapshot`].
    pub async fn save(
        name_or_path: impl AsRef<Path>,
        file: &Path,
        options: SnapshotSaveOptions,
    ) -> MicrosandboxResult<()> {
        portable::save(&Self::open(name_or_path)?, file, options).await
    }

    /// As [`Snapshot::save`] to a stream, such as standard output.
    ///
    /// # Errors
    /// As [`Snapshot::save`].
    pub async fn save_to(
        name_or_path: impl AsRef<Path>,
        output: impl Write + Send + 'static,
        options: SnapshotSaveOptions,
    ) -> MicrosandboxResult<()> {
        portable::save_to(&Self::open(name_or_path)?, output, options).await
    }

    /// Takes in what [`Snapshot::save`] wrote, checked against its digests.
    ///
    /// # Errors
    /// [`MicrosandboxError::SnapshotAlreadyExists`], [`MicrosandboxError::SnapshotIntegrity`],
    /// [`MicrosandboxError::Snapshot`]; nothing is left then.
    pub async fn load(file: &Path, options: SnapshotLoadOptions) -> MicrosandboxResult<Self> {
        let input = std::fs::File::open(file).map_err(MicrosandboxError::file("open", file))?;
        Self::load_from(input, options).await
    }

    /// As [`Snapshot::load`] from a stream, such as standard input.
    ///
    /// # Errors
    /// As [`Snapshot::load`].
    pub async fn load_from(
        input: impl Read + Send + 'static,
        options: SnapshotLoadOptions,
    ) -> MicrosandboxResult<Self> {
        portable::load(&Home::from_env()?, input, options).await
    }

    fn new(stored: StoredSnapshot) -> MicrosandboxResult<Self> {
        let definition = serde_json::from_value(stored.manifest().definition.clone());
        let name = || stored.name().to_owned();
        let definition =
            definition.map_err(|source| MicrosandboxError::Json { name: name(), source })?;
        Ok(Self { stored, definition, still: None })
    }

    fn find(home: &Home, name_or_path: &Path) -> MicrosandboxResult<Self> {
        let name = name_or_path.to_str().filter(|name| !name.contains('/'));
        match name {
            Some(name) => Self::new(home.snapshots().get(name)?),
            None => Self::new(StoredSnapshot::open(name_or_path)?),
        }
    }

    fn manifest(&self) -> &Manifest {
        self.stored.manifest()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.stored.name()
    }

    /// What it is by content, `sha256:…`: equal ids are equal snapshots, in any home.
    pub fn id(&self) -> String {
        self.stored.id().to_string()
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        self.stored.path()
    }

    /// When it was taken.
    pub fn created_at(&self) -> DateTime<Utc> {
        self.manifest().created_at
    }

    /// Name of the sandbox it was taken of.
    pub fn source_sandbox(&self) -> &str {
        &self.manifest().source
    }

    /// What that sandbox called its image.
    pub fn image_reference(&self) -> &str {
        &self.manifest().image.reference
    }

    /// The image by content, `sha256:…`.
    pub fn manifest_digest(&self) -> &str {
        &self.manifest().image.manifest_digest
    }

    /// Whether it holds memory, processors and devices of a running machine.
    pub fn is_full(&self) -> bool {
        self.manifest().files.contains_key("checkpoint/checkpoint.json")
    }

    /// How long the sandbox stood still for it; known right after [`Snapshot::create`] alone.
    pub fn stood_still(&self) -> Option<Duration> {
        self.still
    }

    /// Its labels.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        &self.manifest().labels
    }

    /// Virtual processors of the sandbox it was taken of.
    pub fn cpus(&self) -> u8 {
        self.definition.cpus
    }

    /// Memory of the sandbox it was taken of, MiB.
    pub fn memory_mib(&self) -> u32 {
        self.definition.memory_mib
    }

    /// Size of its disk with all holes.
    pub fn size_bytes(&self) -> u64 {
        self.manifest().files.get(UPPER).map_or(0, |file| file.size_bytes)
    }

    /// What it takes of the host's disk; where files share blocks, each counts them.
    ///
    /// # Errors
    /// [`MicrosandboxError::Snapshot`] when its files cannot be looked at.
    pub fn stored_bytes(&self) -> MicrosandboxResult<u64> {
        Ok(self.stored.stored_bytes()?)
    }
}

fn list(store: &SnapshotStore) -> MicrosandboxResult<Vec<Snapshot>> {
    let readable = store.list()?.into_iter().filter_map(|stored| match Snapshot::new(stored) {
        Ok(snapshot) => Some(snapshot),
        Err(error) => {
            tracing::warn!(%error, "a snapshot is passed over");
            None
        }
    });
    Ok(readable.collect())
}
