//! Taking a snapshot: the sandbox is held or stands still meanwhile, the snapshot appears whole or not
//! at all.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use microsandbox_runtime::{AgentClient, Error as RuntimeError, SandboxDir, step};
use microsandbox_snapshot::{
    Draft, IfTaken, ImagePin, NewManifest, Snapshot as StoredSnapshot, SnapshotStore,
};

use super::{CHECKPOINT, UPPER};
use crate::{
    MicrosandboxError, MicrosandboxResult, RootfsSource, SandboxConfig, SandboxHandle, Snapshot,
    SnapshotConfig, home::Home, thread::on_thread,
};

/// Files of a saved machine besides its disk.
const MACHINE: [&str; 3] = ["memory", "devices", "checkpoint.json"];

/// Takes a snapshot of a sandbox.
pub(super) async fn take(home: &Home, config: SnapshotConfig) -> MicrosandboxResult<Snapshot> {
    config.validate()?;
    let sandbox = SandboxHandle::find(home, &config.sandbox).await?;
    let store = match &config.dest_dir {
        Some(path) => SnapshotStore::open(path),
        None => home.snapshots(),
    };
    let manifest = manifest(&config, sandbox.config()?)?;
    let dir = home.sandbox_dir(&config.sandbox)?;
    if !config.full {
        let copy = move || copy(&store, &dir, &config, manifest);
        return Snapshot::new(on_thread("take-snapshot", copy).await?);
    }
    let (saved, still) = Saved::of(home, &dir, &config.sandbox).await?;
    let publish = move || {
        let draft = saved.into_draft(&store)?;
        step::reached("snapshot.moved");
        Ok::<_, MicrosandboxError>(draft.publish(&config.name, manifest, if_taken(&config))?)
    };
    let stored = on_thread("take-snapshot", publish).await?;
    let mut snapshot = Snapshot::new(stored)?;
    snapshot.still = Some(still);
    Ok(snapshot)
}

/// A running machine that was saved into its sandbox's directory. The supervisor removes what is not
/// taken away before the connection ends.
#[derive(Debug)]
pub(super) struct Saved {
    folder: PathBuf,
    _connection: AgentClient,
}

impl Saved {
    /// Saves the machine; tells how long the guest stood still for it.
    pub(super) async fn of(
        home: &Home,
        dir: &SandboxDir,
        name: &str,
    ) -> MicrosandboxResult<(Self, Duration)> {
        let connection = match AgentClient::connect(dir).await {
            Err(RuntimeError::Connect { .. }) => {
                let status = SandboxHandle::find(home, name).await?.status();
                return Err(MicrosandboxError::SandboxNotRunning { name: name.to_owned(), status });
            }
            connected => connected?,
        };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let count = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{:x}-{count:x}", std::process::id());
        let folder = dir.saved_path(&name).expect("digits and a dash are a name");
        let still = connection.save(&name).await?;
        step::reached("snapshot.saved");
        Ok((Self { folder, _connection: connection }, still))
    }

    /// Moves all of it into a draft.
    pub(super) fn into_draft(self, store: &SnapshotStore) -> MicrosandboxResult<Draft> {
        let draft = store.draft()?;
        draft.move_in(UPPER, &self.folder.join(UPPER))?;
        for name in MACHINE {
            draft.move_in(&format!("{CHECKPOINT}/{name}"), &self.folder.join(name))?;
        }
        fs::remove_dir(&self.folder).map_err(MicrosandboxError::file("remove", &self.folder))?;
        Ok(draft)
    }
}

fn copy(
    store: &SnapshotStore,
    dir: &SandboxDir,
    config: &SnapshotConfig,
    manifest: NewManifest,
) -> MicrosandboxResult<StoredSnapshot> {
    // Held until the copy is made: nobody starts it meanwhile.
    let _lock = dir.lock().map_err(|error| match error {
        RuntimeError::Locked { .. } => {
            MicrosandboxError::SnapshotSandboxRunning(config.sandbox.clone())
        }
        other => other.into(),
    })?;
    step::reached("snapshot.locked");
    let draft = store.draft()?;
    draft.clone_in(UPPER, &dir.upper_path())?;
    step::reached("snapshot.copied");
    Ok(draft.publish(&config.name, manifest, if_taken(config))?)
}

fn if_taken(config: &SnapshotConfig) -> IfTaken {
    if config.force { IfTaken::Replace } else { IfTaken::Fail }
}

fn manifest(config: &SnapshotConfig, sandbox: SandboxConfig) -> MicrosandboxResult<NewManifest> {
    let RootfsSource::Oci(image) = &sandbox.image;
    let pin = ImagePin {
        reference: image.reference.clone(),
        manifest_digest: sandbox.manifest_digest.clone().unwrap_or_default(),
    };
    let definition = serde_json::to_value(&sandbox)
        .map_err(|source| MicrosandboxError::Json { name: sandbox.name.clone(), source })?;
    Ok(NewManifest { source: sandbox.name, image: pin, labels: config.labels.clone(), definition })
}
