//! What opening makes on disk, what it upgrades and what it refuses.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use microsandbox_db::{Catalogue, Error, FaultKind, SandboxFilter};
use microsandbox_migration::{Migrator, MigratorTrait, latest_version};
use sea_orm::Database;

use crate::{Home, execute, sandbox};

#[tokio::test]
async fn a_new_catalogue_is_for_its_owner_alone() {
    let home = Home::new();
    let catalogue = home.open().await;
    catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap();

    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let file = home.catalogue();
    assert_eq!(mode(home.directory.path().join("home")), 0o700);
    assert_eq!(mode(file.parent().unwrap().to_owned()), 0o700);
    for suffix in ["", "-wal", "-shm", ".lock"] {
        assert_eq!(mode(format!("{}{suffix}", file.display()).into()), 0o600, "msb.db{suffix}");
    }
}

#[tokio::test]
async fn a_closed_catalogue_leaves_one_file_and_its_lock() {
    let home = Home::new();
    let catalogue = home.open().await;
    catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap();
    catalogue.close().await.unwrap();

    let mut names: Vec<_> = fs::read_dir(home.catalogue().parent().unwrap())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["msb.db", "msb.db.lock"]);
}

#[tokio::test]
async fn what_a_killed_maker_left_behind_is_in_nobodys_way() {
    let home = Home::new();
    let directory = home.catalogue().parent().unwrap().to_owned();
    fs::create_dir_all(&directory).unwrap();
    for leftover in ["msb.db.new", "msb.db.new-journal", "msb.db.new-wal", "msb.db.lock"] {
        fs::write(directory.join(leftover), "half made").unwrap();
    }

    assert!(Catalogue::open_existing(home.catalogue()).unwrap().is_none());
    home.open().await.insert_sandbox(&sandbox("web", &[])).await.unwrap();
    assert!(!directory.join("msb.db.new").exists());
}

#[tokio::test]
async fn an_older_catalogue_is_upgraded_by_writers_and_told_by_readers() {
    for version in 1..latest_version() {
        let home = Home::new();
        let path = home.catalogue();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let old = Database::connect(format!("sqlite://{}?mode=rwc", path.display())).await.unwrap();
        Migrator::up(&old, Some(version)).await.unwrap();
        old.close().await.unwrap();
        execute(&path, &format!("PRAGMA user_version = {version}")).await;
        let insert = "INSERT INTO sandbox VALUES (1, 'kept', '{}', 0, NULL, 1, 2)";
        execute(&path, insert).await;
        let untouched = fs::read(&path).unwrap();

        let told = home.open_existing().runs_of("kept").await.unwrap_err();
        assert!(
            matches!(told, Error::SchemaOlder { found, needed, .. }
                if found == version && needed == latest_version()),
            "{told:?}"
        );
        assert!(told.hint().is_some());
        assert_eq!(fs::read(&path).unwrap(), untouched);

        home.open().await.close().await.unwrap();
        let kept = home.open_existing().sandboxes(&SandboxFilter::default()).await.unwrap();
        assert_eq!(kept.len(), 1, "from version {version}");
        assert_eq!(kept[0].name, "kept");
    }
}

#[tokio::test]
async fn a_newer_catalogue_is_refused_by_both_numbers_and_left_alone() {
    let home = Home::new();
    home.open().await.close().await.unwrap();
    let newer = latest_version() + 1;
    execute(&home.catalogue(), &format!("PRAGMA user_version = {newer}")).await;
    let untouched = fs::read(home.catalogue()).unwrap();

    for refused in [
        Catalogue::open(home.catalogue()).await.unwrap_err(),
        home.open_existing().sandbox("web").await.unwrap_err(),
    ] {
        assert_eq!(
            refused.to_string(),
            format!(
                "catalogue {} has schema version {newer}, newer than {} of this microsandbox",
                home.catalogue().display(),
                latest_version()
            )
        );
        assert!(refused.hint().unwrap().contains("update microsandbox"));
    }
    assert_eq!(fs::read(home.catalogue()).unwrap(), untouched);
}

#[tokio::test]
async fn a_file_that_is_no_catalogue_is_named_with_a_remedy_and_kept() {
    let home = Home::new();
    fs::create_dir_all(home.catalogue().parent().unwrap()).unwrap();
    let garbage = "not a database, and long enough for a header. ".repeat(100);
    fs::write(home.catalogue(), &garbage).unwrap();

    for refused in [
        Catalogue::open(home.catalogue()).await.unwrap_err(),
        home.open_existing().sandbox("web").await.unwrap_err(),
    ] {
        assert_eq!(refused.fault().unwrap().kind(), FaultKind::Damaged, "{refused:?}");
        assert!(refused.hint().unwrap().contains("msb.db"), "{refused:?}");
    }
    assert_eq!(fs::read_to_string(home.catalogue()).unwrap(), garbage);
}

#[tokio::test]
async fn a_path_that_sqlite_could_take_for_an_address_is_just_a_path() {
    let home = Home::new();
    for name in ["a%41?mode=memory#x.db", "file:b.db", "with space.db", ":memory:"] {
        let path = home.directory.path().join(name);
        let catalogue = Catalogue::open(&path).await.unwrap();
        catalogue.insert_sandbox(&sandbox(name, &[])).await.unwrap();
        catalogue.close().await.unwrap();

        assert!(fs::metadata(&path).unwrap().size() > 0, "{name}");
        let reader = Catalogue::open_existing(&path).unwrap().unwrap();
        assert!(reader.sandbox(name).await.unwrap().is_some(), "{name}");
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_named() {
    let home = Home::new();
    fs::write(home.directory.path().join("home"), "a file in the way").unwrap();

    let refused = Catalogue::open(home.catalogue()).await.unwrap_err();

    assert!(matches!(refused, Error::Create { .. }), "{refused:?}");
    assert!(refused.to_string().contains("home/db/msb.db"));
}

#[tokio::test]
async fn every_call_can_be_awaited_on_any_thread() {
    let home = Home::new();
    let path = home.catalogue();
    let task = async move {
        let catalogue = Catalogue::open(&path).await.unwrap();
        let row = catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap();
        catalogue.update_sandbox_config(row.id, "{}").await.unwrap();
        catalogue.pinned_manifests().await.unwrap();
        catalogue.runs_of("web").await.unwrap();
        let reader = Catalogue::open_existing(&path).unwrap().unwrap();
        reader.sandboxes(&SandboxFilter::default()).await.unwrap().len()
    };
    assert_eq!(tokio::spawn(task).await.unwrap(), 1);
}
