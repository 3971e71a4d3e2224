//! What is in a store, what becomes of it, and what kills and damage leave.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
};

use microsandbox_snapshot::{Error, IfTaken};

use crate::{disk, fresh, manifest, names, snapshot};

#[test]
fn a_snapshot_is_found_by_name_and_by_content_and_is_gone_after_removal() {
    let (_dir, store) = fresh();
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(store.get("a"), Err(Error::NotFound { .. })));
    let made = snapshot(&store, "a").unwrap();
    assert_eq!(store.get("a").unwrap(), made);
    assert_eq!(store.get(&made.id().to_string()).unwrap(), made);
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&made));
    assert_eq!(store.pinned_images().unwrap(), [manifest().image.manifest_digest]);
    assert_eq!(names(made.path()), ["checkpoint", "seen.json", "snapshot.json", "upper.ext4"]);
    let stored = made.stored_bytes().unwrap();
    assert!((1..1 << 20).contains(&stored), "{stored}");
    made.verify().unwrap();
    store.remove("a").unwrap();
    assert!(names(store.root()).is_empty());
    assert!(matches!(store.remove("a"), Err(Error::NotFound { .. })));
}

#[test]
fn only_the_owner_can_read_a_snapshot() {
    let (_dir, store) = fresh();
    let made = snapshot(&store, "a").unwrap();
    for (path, mode) in [
        (store.root().to_owned(), 0o700),
        (made.path().to_owned(), 0o700),
        (made.path().join("checkpoint"), 0o700),
        (made.path().join("upper.ext4"), 0o600),
    ] {
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, mode, "{path:?}");
    }
}

#[test]
fn a_name_is_had_once_unless_it_is_taken_over() {
    let (dir, store) = fresh();
    let first = snapshot(&store, "a").unwrap();
    assert!(matches!(snapshot(&store, "a"), Err(Error::AlreadyExists { .. })));
    assert_eq!(store.get("a").unwrap(), first);
    disk(&dir.path().join("disk"));
    let draft = store.draft().unwrap();
    draft.clone_in("upper.ext4", &dir.path().join("disk")).unwrap();
    let second = draft.publish("a", manifest(), IfTaken::Replace).unwrap();
    assert_ne!(first.id(), second.id());
    assert_eq!(store.get("a").unwrap(), second);
    assert_eq!(names(store.root()), ["a"]);
}

#[test]
fn names_that_could_be_paths_or_options_are_refused() {
    let (_dir, store) = fresh();
    let long = "a".repeat(129);
    for name in ["", ".", "..", ".new-x", "-f", "a/b", "a\nb", &long] {
        assert!(matches!(snapshot(&store, name), Err(Error::Name { .. })), "{name:?}");
        assert!(store.get(name).is_err() && store.remove(name).is_err(), "{name:?}");
    }
    assert!(names(store.root()).is_empty(), "a refused snapshot leaves nothing");
}

#[test]
fn whatever_is_altered_is_found_without_reading_what_is_not() {
    let (_dir, store) = fresh();
    let made = snapshot(&store, "a").unwrap();
    let upper = made.path().join("upper.ext4");
    let seen = made.path().join("seen.json");
    let noted = fs::read(&seen).unwrap();
    made.check().unwrap();
    // Touched and not altered: read once more, then known again.
    File::options().write(true).open(&upper).unwrap().write_all_at(b"first", 0).unwrap();
    made.check().unwrap();
    assert_ne!(fs::read(&seen).unwrap(), noted);
    // One byte, with size and time of modification as before.
    let before = upper.metadata().unwrap();
    let file = File::options().write(true).open(&upper).unwrap();
    file.write_all_at(b"F", 0).unwrap();
    file.set_modified(before.modified().unwrap()).unwrap();
    assert!(matches!(made.check(), Err(Error::Altered { .. })));
    assert!(matches!(made.verify(), Err(Error::Altered { .. })));
    file.write_all_at(b"f", 0).unwrap();
    made.verify().unwrap();
    file.set_len(before.len() - 1).unwrap();
    assert!(matches!(made.check(), Err(Error::Unlike { what: "another length", .. })));
    fs::remove_file(&upper).unwrap();
    assert!(matches!(made.check(), Err(Error::Unlike { what: "it is missing", .. })));
    std::os::unix::fs::symlink("/etc/passwd", &upper).unwrap();
    assert!(matches!(made.check(), Err(Error::Unlike { what: "it is no file", .. })));
}

#[test]
fn manifests_of_other_formats_and_of_enemies_are_refused() {
    let (_dir, store) = fresh();
    let made = snapshot(&store, "a").unwrap();
    let path = made.path().join("snapshot.json");
    let text = fs::read_to_string(&path).unwrap();
    for (altered, check) in [
        (text.replace("\"version\": 1", "\"version\": 9"), "has format 9; this version reads 1"),
        (text.replace("checkpoint/device-state", "../../etc/passwd"), "outside of the snapshot"),
        (text[..text.len() / 2].to_owned(), "read the manifest"),
        (String::new(), "read the manifest"),
    ] {
        fs::write(&path, &altered).unwrap();
        let error = store.get("a").unwrap_err().to_string();
        assert!(error.contains(check), "{error}");
        assert!(store.list().unwrap().is_empty(), "others are listed all the same");
    }
    fs::write(&path, text.replace("\"version\": 1", "\"version\": 9")).unwrap();
    assert_eq!(store.pinned_images().unwrap().len(), 1, "a newer format pins as well");
    store.remove("a").unwrap();
}

#[test]
fn what_a_killed_process_left_goes_and_what_a_living_one_makes_stays() {
    let (_dir, store) = fresh();
    let alive = store.draft().unwrap();
    let left = store.root().join(".new-left");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("upper.ext4"), "half").unwrap();
    snapshot(&store, "a").unwrap();
    assert!(!left.exists() && alive.path().exists());
    drop(alive);
    assert_eq!(names(store.root()), ["a"]);
}

#[test]
fn a_clone_costs_what_is_in_the_disk() {
    let (_dir, store) = fresh();
    let made = snapshot(&store, "a").unwrap();
    let stat = made.file("upper.ext4").unwrap().metadata().unwrap();
    assert_eq!(stat.len(), 64 << 20);
    assert!(stat.blocks() * 512 < 1 << 20, "{} blocks", stat.blocks());
}
