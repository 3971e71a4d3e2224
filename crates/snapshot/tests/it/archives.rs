//! Archives: there and back, through `tar` and `zstd`, and what enemies make of them.

use std::{fs, path::Path, process::Command};

use microsandbox_snapshot::{Error, IfTaken, Manifest, Snapshot, SnapshotStore, export};

use crate::{fresh, names, snapshot};

fn exported(snapshot: &Snapshot, image: Option<&Path>) -> Vec<u8> {
    let mut archive = Vec::new();
    export(snapshot, image, &mut archive).unwrap();
    archive
}

fn import(store: &SnapshotStore, archive: &[u8], name: Option<&str>) -> Result<Snapshot, Error> {
    store.import(archive, name, IfTaken::Fail, |image, _| panic!("no image: {}", image.display()))
}

#[test]
fn what_was_exported_is_imported_and_as_sparse() {
    let (_here, from) = fresh();
    let (_there, to) = fresh();
    let made = snapshot(&from, "a").unwrap();
    let archive = exported(&made, None);
    assert!(archive.len() < 100_000, "{} bytes", archive.len());
    let imported = import(&to, &archive, None).unwrap();
    assert_eq!((imported.name(), imported.id()), ("a", made.id()));
    assert_eq!(imported.manifest(), made.manifest());
    assert!(imported.stored_bytes().unwrap() < 1 << 20);
    imported.verify().unwrap();
    assert!(matches!(import(&to, &archive, None), Err(Error::AlreadyExists { .. })));
    assert_eq!(import(&to, &archive, Some("b")).unwrap().id(), made.id());
    assert_eq!(names(to.root()), ["a", "b"]);
}

#[test]
fn an_image_goes_along_and_is_no_part_of_the_snapshot() {
    let (dir, from) = fresh();
    let image = dir.path().join("some");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("part"), "an image").unwrap();
    let archive = exported(&snapshot(&from, "a").unwrap(), Some(&image));
    let (_there, to) = fresh();
    let mut seen = None;
    let with_image = |path: &Path, _: &Manifest| -> Result<(), Error> {
        seen = Some(fs::read_to_string(path.join("part")).unwrap());
        Ok(())
    };
    let imported = to.import(&archive[..], None, IfTaken::Fail, with_image).unwrap();
    assert_eq!(seen.as_deref(), Some("an image"));
    assert!(!imported.path().join("image").exists());
    let refused = to.import(&archive[..], Some("b"), IfTaken::Fail, |_, _| {
        Err(Error::NotFound { name: "told by the caller".into() })
    });
    assert!(matches!(refused, Err(Error::NotFound { .. })));
    assert_eq!(names(to.root()), ["a"]);
}

#[test]
fn tar_and_zstd_read_it() {
    let (dir, store) = fresh();
    let made = snapshot(&store, "a").unwrap();
    let path = dir.path().join("a.tar.zst");
    fs::write(&path, exported(&made, None)).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let status = Command::new("sh")
        .args(["-c", "zstd -q -d -c \"$0\" | tar -x -C \"$1\""])
        .args([&path, &out])
        .status()
        .unwrap();
    assert!(status.success());
    let same = |name: &str| {
        Command::new("cmp").arg(out.join(name)).arg(made.path().join(name)).status().unwrap()
    };
    for name in ["snapshot.json", "upper.ext4", "checkpoint/device-state"] {
        assert!(same(name).success(), "{name}");
    }
}

#[test]
fn archives_that_are_cut_or_altered_leave_nothing() {
    let (_here, from) = fresh();
    let archive = exported(&snapshot(&from, "a").unwrap(), None);
    let (_there, to) = fresh();
    for cut in [0, 1, 10, archive.len() / 2, archive.len() - 1] {
        assert!(import(&to, &archive[..cut], None).is_err(), "cut to {cut}");
    }
    for at in (0..archive.len()).step_by(archive.len() / 24) {
        let mut altered = archive.clone();
        altered[at] ^= 0x55;
        assert!(import(&to, &altered, None).is_err(), "altered at {at}");
    }
    assert!(names(to.root()).is_empty());
}

/// An archive of what `make` puts into a directory beside the parts of a real one.
fn hostile(make: impl Fn(&Path)) -> Vec<u8> {
    let (dir, store) = fresh();
    let made = snapshot(&store, "a").unwrap();
    let parts = dir.path().join("parts");
    fs::create_dir_all(parts.join("checkpoint")).unwrap();
    for name in made.manifest().files.keys().map(String::as_str).chain(["snapshot.json"]) {
        fs::copy(made.path().join(name), parts.join(name)).unwrap();
    }
    make(&parts);
    let tar = Command::new("sh")
        .args(["-c", "tar -c -S -P -C \"$0\" . | zstd -q -c"])
        .arg(&parts)
        .output()
        .unwrap();
    assert!(tar.status.success());
    tar.stdout
}

#[test]
fn members_that_do_not_belong_are_refused() {
    let (_dir, store) = fresh();
    import(&store, &hostile(|_| {}), Some("fine")).unwrap();
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    fs::write(&target, "untouched").unwrap();
    type Make<'a> = &'a dyn Fn(&Path);
    let makes: [(&str, Make<'_>); 6] = [
        ("another file", &|parts| fs::write(parts.join("more"), "x").unwrap()),
        ("a note of what was seen", &|parts| fs::write(parts.join("seen.json"), "{}").unwrap()),
        ("a link for a file", &|parts| {
            fs::remove_file(parts.join("upper.ext4")).unwrap();
            std::os::unix::fs::symlink(&target, parts.join("upper.ext4")).unwrap();
        }),
        ("a link for a directory", &|parts| {
            fs::remove_dir_all(parts.join("checkpoint")).unwrap();
            std::os::unix::fs::symlink(outside.path(), parts.join("checkpoint")).unwrap();
        }),
        ("a missing file", &|parts| fs::remove_file(parts.join("upper.ext4")).unwrap()),
        ("another content", &|parts| {
            fs::write(parts.join("checkpoint/device-state"), "STATE").unwrap();
        }),
    ];
    for (what, make) in makes {
        let refused = import(&store, &hostile(make), None);
        assert!(refused.is_err(), "{what}");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
    assert_eq!(names(store.root()), ["fine"]);
}

#[test]
fn a_few_bytes_do_not_unpack_to_many() {
    let (dir, store) = fresh();
    let tar = dir.path().join("fine.tar");
    fs::write(&tar, hostile(|_| {})).unwrap();
    let bomb = Command::new("sh")
        .args(["-c", "(zstd -q -d -c \"$0\"; head -c 1200M /dev/zero) | zstd -q -1 -c"])
        .arg(&tar)
        .output()
        .unwrap();
    assert!(bomb.stdout.len() < 1 << 20, "{} bytes", bomb.stdout.len());
    assert!(matches!(import(&store, &bomb.stdout, None), Err(Error::Bomb { .. })));
    assert!(names(store.root()).is_empty());
}
