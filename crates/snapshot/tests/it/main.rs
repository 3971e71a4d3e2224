//! Snapshots on a real file system, and archives of them that went through real tools.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test they help")]

mod archives;
mod store;

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use microsandbox_snapshot::{IfTaken, ImagePin, NewManifest, Snapshot, SnapshotStore};
use serde_json::json;
use tempfile::TempDir;

/// A directory for a test, and the store within it.
fn fresh() -> (TempDir, SnapshotStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SnapshotStore::open(dir.path().join("snapshots"));
    (dir, store)
}

/// Writes a disk with holes.
fn disk(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(64 << 20).unwrap();
    for (offset, text) in [(0, "first"), (1 << 20, "second"), ((64 << 20) - 4, "last")] {
        file.write_all_at(text.as_bytes(), offset).unwrap();
    }
}

fn manifest() -> NewManifest {
    NewManifest {
        source: "box".into(),
        image: ImagePin {
            reference: "debian:12".into(),
            manifest_digest: format!("sha256:{}", "a".repeat(64)),
        },
        labels: [("made".to_owned(), "here".to_owned())].into(),
        definition: json!({ "cpus": 1 }),
    }
}

/// A snapshot of a disk and of something in a directory below.
fn snapshot(store: &SnapshotStore, name: &str) -> microsandbox_snapshot::Result<Snapshot> {
    let sources = tempfile::tempdir().unwrap();
    disk(&sources.path().join("disk"));
    fs::write(sources.path().join("state"), "state").unwrap();
    let draft = store.draft()?;
    draft.clone_in("upper.ext4", &sources.path().join("disk"))?;
    draft.clone_in("checkpoint/device-state", &sources.path().join("state"))?;
    draft.publish(name, manifest(), IfTaken::Fail)
}

/// The names in a directory, hidden ones included.
fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
