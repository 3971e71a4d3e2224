//! Readers answer and leave no trace: at rest, beside a writer, on a read-only mount.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use microsandbox_db::{Catalogue, Error, SandboxFilter};
use tempfile::TempDir;

use crate::{Home, sandbox};

#[tokio::test]
async fn where_there_is_no_catalogue_a_reader_finds_none_and_makes_none() {
    let home = Home::new();
    assert!(Catalogue::open_existing(home.catalogue()).unwrap().is_none());
    assert_eq!(fs::read_dir(home.directory.path()).unwrap().count(), 0);
}

#[tokio::test]
async fn a_reader_leaves_a_resting_catalogue_as_it_was() {
    let home = Home::new();
    let writer = home.open().await;
    writer.insert_sandbox(&sandbox("web", &[])).await.unwrap();
    writer.close().await.unwrap();
    let before = state(home.catalogue().parent().unwrap());

    let reader = home.open_existing();
    assert!(reader.sandbox("web").await.unwrap().is_some());
    assert!(reader.runs_of("web").await.unwrap().is_empty());
    reader.close().await.unwrap();

    assert_eq!(state(home.catalogue().parent().unwrap()), before);
}

#[tokio::test]
async fn a_reader_sees_each_commit_of_a_writer_that_comes_and_goes() {
    let home = Home::new();
    home.open().await.close().await.unwrap();
    let reader = home.open_existing();

    for round in 0..20 {
        let writer = home.open().await;
        assert_eq!(count(&reader).await, round, "the writer is there and has written nothing");
        writer.insert_sandbox(&sandbox(&format!("s{round}"), &[])).await.unwrap();
        assert_eq!(count(&reader).await, round + 1, "the writer is there");
        if round % 2 == 0 {
            writer.close().await.unwrap();
            assert_eq!(count(&reader).await, round + 1, "the writer is gone");
        }
    }
}

#[tokio::test]
async fn a_reader_beside_a_writer_makes_no_file() {
    let home = Home::new();
    let writer = home.open().await;
    writer.insert_sandbox(&sandbox("web", &[])).await.unwrap();
    let names = |state: &BTreeMap<String, _>| state.keys().cloned().collect::<Vec<_>>();
    let before = names(&state(home.catalogue().parent().unwrap()));

    assert_eq!(count(&home.open_existing()).await, 1);

    assert_eq!(names(&state(home.catalogue().parent().unwrap())), before);
    writer.insert_sandbox(&sandbox("more", &[])).await.unwrap();
}

#[tokio::test]
async fn a_reader_answers_while_a_writer_holds_the_lock() {
    let home = Home::new();
    let catalogue = home.open().await;
    catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap();
    let address = format!("sqlite://{}", home.catalogue().display());
    let other = sea_orm::Database::connect(address).await.unwrap();
    let immediate = sea_orm::TransactionOptions {
        sqlite_transaction_mode: Some(sea_orm::SqliteTransactionMode::Immediate),
        ..sea_orm::TransactionOptions::default()
    };
    let held = sea_orm::TransactionTrait::begin_with_options(&other, immediate).await.unwrap();

    assert_eq!(count(&home.open_existing()).await, 1);
    assert_eq!(count(&catalogue).await, 1);
    held.rollback().await.unwrap();
}

#[tokio::test]
async fn a_read_only_mount_is_read_at_rest_and_beside_a_writer() {
    let home = Home::new();
    let writer = home.open().await;
    writer.insert_sandbox(&sandbox("one", &[])).await.unwrap();
    writer.close().await.unwrap();

    {
        let view = ReadOnlyView::of(home.catalogue().parent().unwrap());
        let reader = Catalogue::open_existing(view.path("msb.db")).unwrap().unwrap();
        assert_eq!(count(&reader).await, 1, "at rest");
    }
    let writer = home.open().await;
    writer.insert_sandbox(&sandbox("two", &[])).await.unwrap();
    {
        let view = ReadOnlyView::of(home.catalogue().parent().unwrap());
        let reader = Catalogue::open_existing(view.path("msb.db")).unwrap().unwrap();
        assert_eq!(count(&reader).await, 2, "beside a writer");
        writer.insert_sandbox(&sandbox("three", &[])).await.unwrap();
        assert_eq!(count(&reader).await, 3, "after the writer went on");
        // SQLite keeps the reader's descriptors, and with them the mount, while this process's
        // writer has locks on the same file.
        writer.close().await.unwrap();
    }
}

#[tokio::test]
async fn a_reader_refuses_to_write_by_type() {
    let home = Home::new();
    home.open().await.close().await.unwrap();
    let reader = home.open_existing();

    let refused = reader.insert_sandbox(&sandbox("web", &[])).await.unwrap_err();

    assert!(matches!(refused, Error::ReadOnly { .. }), "{refused:?}");
    assert_eq!(count(&reader).await, 0);
}

async fn count(catalogue: &Catalogue) -> usize {
    catalogue.sandboxes(&SandboxFilter::default()).await.unwrap().len()
}

/// Every file's bytes and times.
fn state(directory: &Path) -> BTreeMap<String, (Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        (name, (fs::read(&path).unwrap(), modified))
    });
    entries.collect()
}

/// A directory that cannot be written to: a read-only bind mount where this process may mount,
/// else the directory itself with its write permissions taken away meanwhile.
enum ReadOnlyView {
    Mounted(TempDir),
    Protected(PathBuf),
}

impl ReadOnlyView {
    fn of(directory: &Path) -> Self {
        let mount_point = tempfile::tempdir().unwrap();
        let bind =
            Command::new("mount").arg("--bind").args([directory, mount_point.path()]).output();
        if bind.is_ok_and(|bind| bind.status.success()) {
            let view = Self::Mounted(mount_point);
            let remount = Command::new("mount")
                .args(["-o", "remount,bind,ro"])
                .arg(view.path(""))
                .status()
                .unwrap();
            assert!(remount.success());
            fs::write(view.path("probe"), "").expect_err("the mount is read-only");
            return view;
        }
        set_mode(directory, 0o500);
        Self::Protected(directory.to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        match self {
            Self::Mounted(mount_point) => mount_point.path().join(name),
            Self::Protected(directory) => directory.join(name),
        }
    }
}

impl Drop for ReadOnlyView {
    fn drop(&mut self) {
        match self {
            Self::Mounted(mount_point) => {
                let unmount = Command::new("umount").arg(mount_point.path()).status();
                assert!(unmount.unwrap().success());
            }
            Self::Protected(directory) => set_mode(directory, 0o700),
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}
