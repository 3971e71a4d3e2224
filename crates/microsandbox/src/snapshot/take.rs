//! Taking a snapshot: the sandbox is held meanwhile, the snapshot appears whole or not at all.

use microsandbox_runtime::{Error as RuntimeError, SandboxDir, step};
use microsandbox_snapshot::{
    IfTaken, ImagePin, NewManifest, Snapshot as StoredSnapshot, SnapshotStore,
};

use super::UPPER;
use crate::{
    MicrosandboxError, MicrosandboxResult, RootfsSource, SandboxConfig, SandboxHandle, Snapshot,
    SnapshotConfig, home::Home, thread::on_thread,
};

/// Takes a snapshot of a sandbox that does not run.
pub(super) async fn take(home: &Home, config: SnapshotConfig) -> MicrosandboxResult<Snapshot> {
    config.validate()?;
    let sandbox = SandboxHandle::find(home, &config.sandbox).await?;
    let store = match &config.dest_dir {
        Some(path) => SnapshotStore::open(path),
        None => home.snapshots(),
    };
    let manifest = manifest(&config, sandbox.config()?)?;
    let dir = home.sandbox_dir(&config.sandbox)?;
    let stored = on_thread("take-snapshot", move || copy(&store, &dir, &config, manifest)).await?;
    Snapshot::new(stored)
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
    let taken = if config.force { IfTaken::Replace } else { IfTaken::Fail };
    Ok(draft.publish(&config.name, manifest, taken)?)
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
