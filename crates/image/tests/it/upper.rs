//! The writable disk: judged by `e2fsck`, and by the kernel where it may mount.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use microsandbox_image::Error;
use microsandbox_image::ext4::{
    self, UpperDisk, UpperEntry, UpperEntryKind, UpperKind, UpperOptions, UpperOwner,
};
use tempfile::TempDir;

use crate::tools::{Mount, is_root, run, text};

#[test]
fn e2fsck_finds_nothing_and_the_directories_are_there() -> Result<()> {
    let directory = TempDir::new()?;
    for size_bytes in [1, 64 << 20, 4 << 30, 100 << 30] {
        let path = directory.path().join("upper.ext4");
        ext4::format(&path, &UpperOptions::new(size_bytes, [7; 16]), &[])?;
        run("e2fsck", &["-f", "-n", text(&path)?])?;
        let metadata = path.metadata()?;
        assert_eq!(metadata.len(), size_bytes.max(ext4::MIN_SIZE_BYTES));
        assert!(metadata.blocks() * 512 < 16 << 20, "{size_bytes} bytes are not sparse");
        let listing = run("debugfs", &["-R", "ls -l /", text(&path)?])?;
        for name in ["upper", "work"] {
            let line = listing.lines().find(|line| line.ends_with(&format!(" {name}")));
            assert!(line.is_some_and(|line| line.contains("40755")), "{name}: {listing}");
        }
        let features = run("dumpe2fs", &["-h", text(&path)?])?;
        for feature in ["has_journal", "metadata_csum", "extent"] {
            assert!(features.contains(feature), "{feature}: {features}");
        }
    }
    Ok(())
}

#[test]
fn entries_given_at_format_time_are_in_upper() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("upper.ext4");
    let host = directory.path().join("host");
    fs::write(&host, vec![3; 100_000])?;
    let entries = [
        UpperEntry::new("/etc", 0o755, UpperEntryKind::Directory),
        UpperEntry::new("/etc/motd", 0o644, UpperEntryKind::File(b"hello\n".to_vec())),
        UpperEntry::new("/etc/copy", 0o600, UpperEntryKind::HostFile(host.clone())),
        UpperEntry::new("/etc/link", 0o777, UpperEntryKind::Symlink("motd".into())),
        UpperEntry::new("/gone", 0, UpperEntryKind::Whiteout),
    ];
    ext4::format(&path, &UpperOptions::new(64 << 20, [7; 16]), &entries)?;
    run("e2fsck", &["-f", "-n", text(&path)?])?;
    let out = directory.path().join("out");
    run("debugfs", &["-R", &format!("dump /upper/etc/copy {}", text(&out)?), text(&path)?])?;
    assert_eq!(fs::read(&out)?, fs::read(&host)?);
    assert!(run("debugfs", &["-R", "cat /upper/etc/motd", text(&path)?])?.contains("hello"));
    assert!(run("debugfs", &["-R", "stat /upper/gone", text(&path)?])?.contains("character"));
    Ok(())
}

#[test]
fn a_failed_format_leaves_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("upper.ext4");
    let orphan = [UpperEntry::new("/a/b", 0o644, UpperEntryKind::File(Vec::new()))];
    assert!(ext4::format(&path, &UpperOptions::new(64 << 20, [7; 16]), &orphan).is_err());
    let absent = UpperEntryKind::HostFile(directory.path().join("absent"));
    let entries = [UpperEntry::new("/a", 0o644, absent)];
    assert!(ext4::format(&path, &UpperOptions::new(64 << 20, [7; 16]), &entries).is_err());
    assert_eq!(fs::read_dir(directory.path())?.count(), 0);
    Ok(())
}

/// Everything an upper can hold, names that are not UTF-8 and holes included.
fn furnished(directory: &TempDir) -> Result<PathBuf> {
    let path = directory.path().join("upper.ext4");
    let host = directory.path().join("host");
    let file = fs::File::create(&host)?;
    file.write_all_at(b"data", 3_000_000_000)?;
    let mut zeros = vec![0; 5 << 20];
    zeros[2 << 20] = 1;
    let odd = |name: &[u8]| PathBuf::from(OsStr::from_bytes(name));
    let entries = [
        UpperEntry::new("etc", 0o750, UpperEntryKind::Directory),
        UpperEntry::new("etc/motd", 0o644, UpperEntryKind::File(b"hello\n".to_vec())),
        UpperEntry::new("etc/zeros", 0o600, UpperEntryKind::File(zeros)),
        UpperEntry::new("etc/holes", 0o600, UpperEntryKind::HostFile(host)),
        UpperEntry::new("etc/empty", 0o600, UpperEntryKind::File(Vec::new())),
        UpperEntry::new(odd(b"caf\xe9"), 0o711, UpperEntryKind::Directory),
        UpperEntry::new(odd(b"caf\xe9/\xff\xfe"), 0o4755, UpperEntryKind::File(vec![7; 3000])),
        UpperEntry::new("link", 0o777, UpperEntryKind::Symlink(odd(b"caf\xe9"))),
        UpperEntry::new("gone", 0, UpperEntryKind::Whiteout),
    ];
    ext4::format(&path, &UpperOptions::new(256 << 20, [7; 16]), &entries)?;
    Ok(path)
}

fn checked(path: &Path) -> Result<()> {
    run("e2fsck", &["-f", "-n", text(path)?]).map(drop)
}

fn content(disk: &UpperDisk, path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    disk.read(path, &mut bytes)?;
    Ok(bytes)
}

#[test]
fn names_are_bytes_and_zeros_take_no_room() -> Result<()> {
    let directory = TempDir::new()?;
    let path = furnished(&directory)?;
    checked(&path)?;
    assert!(path.metadata()?.blocks() * 512 < 16 << 20, "the holes were written");
    let disk = UpperDisk::open(&path)?;
    let odd = OsStr::from_bytes(b"caf\xe9/\xff\xfe");
    assert_eq!(content(&disk, odd)?, [7; 3000]);
    assert_eq!(disk.stat(odd)?.mode, 0o4755);
    assert_eq!(disk.read_link("link")?.as_os_str().as_bytes(), b"caf\xe9");
    assert_eq!(disk.stat("/etc/holes")?.size_bytes, 3_000_000_004);
    assert_eq!(content(&disk, "etc/motd")?, b"hello\n");
    let zeros = content(&disk, "etc/zeros")?;
    assert_eq!((zeros.len(), zeros.iter().position(|b| *b == 1)), (5 << 20, Some(2 << 20)));
    let mut names: Vec<_> = disk.list("")?.into_iter().map(|name| (name.name, name.kind)).collect();
    names.sort_by(|one, other| one.0.cmp(&other.0));
    let expected = [
        (OsStr::from_bytes(b"caf\xe9"), UpperKind::Directory),
        (OsStr::new("etc"), UpperKind::Directory),
        (OsStr::new("gone"), UpperKind::CharDevice),
        (OsStr::new("link"), UpperKind::Symlink),
    ];
    assert_eq!(names, expected.map(|(name, kind)| (name.to_owned(), kind)));
    Ok(())
}

#[test]
fn e2fsck_is_silent_after_every_edit_and_the_kernel_reads_it_back() -> Result<()> {
    let directory = TempDir::new()?;
    let path = furnished(&directory)?;
    let owner = UpperOwner { mode: 0o6751, uid: 70_000, gid: 4_000_000 };
    let large: Vec<u8> = (0..700_000_u32).flat_map(u32::to_le_bytes).collect();
    type Edit<'a> = &'a dyn Fn(&UpperDisk) -> std::result::Result<(), Error>;
    let edits: [(&str, Edit<'_>); 8] = [
        ("a new file", &|disk| disk.write("etc/large", owner, &mut large.as_slice())),
        ("a file replaced", &|disk| disk.write("etc/motd", owner, &mut &b"changed"[..])),
        ("a directory", &|disk| disk.make_directory("new", owner)),
        ("a file in it", &|disk| disk.write("new/file", owner, &mut &b"x"[..])),
        ("a link", &|disk| disk.make_link("new/link", "../etc/motd")),
        ("a whiteout over a file", &|disk| disk.white_out("etc/empty")),
        ("a file removed", &|disk| disk.remove("etc/zeros")),
        ("a tree removed", &|disk| disk.remove(OsStr::from_bytes(b"caf\xe9"))),
    ];
    for (what, edit) in edits {
        let disk = UpperDisk::edit(&path)?;
        edit(&disk)?;
        disk.finish()?;
        checked(&path).map_err(|fault| fault.context(what))?;
    }
    let disk = UpperDisk::open(&path)?;
    assert!(content(&disk, "etc/large")? == large);
    assert_eq!(content(&disk, "etc/motd")?, b"changed");
    let stat = disk.stat("etc/motd")?;
    assert_eq!(
        (stat.kind, stat.mode, stat.uid, stat.gid),
        (UpperKind::File, 0o6751, 70_000, 4_000_000)
    );
    assert_eq!(disk.stat("etc/empty")?.kind, UpperKind::CharDevice);
    assert!(!disk.list("")?.iter().any(|name| name.name.as_bytes() == b"caf\xe9"));
    drop(disk);
    // An independent reader.
    let out = directory.path().join("out");
    run("debugfs", &["-R", &format!("dump /upper/etc/large {}", text(&out)?), text(&path)?])?;
    assert!(fs::read(&out)? == large);
    if is_root("mounting an upper disk") {
        let mount = Mount::ext4(&path)?;
        let upper = mount.path.join("upper");
        assert!(fs::read(upper.join("etc/large"))? == large);
        assert_eq!(fs::read_link(upper.join("new/link"))?, Path::new("../etc/motd"));
        assert_eq!(fs::metadata(upper.join("new/file"))?.mode() & 0o7777, 0o6751);
    }
    Ok(())
}

#[test]
fn what_cannot_be_done_is_told_apart_and_changes_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    let path = furnished(&directory)?;
    let owner = UpperOwner { mode: 0o644, uid: 0, gid: 0 };
    let disk = UpperDisk::edit(&path)?;
    let mut endless = io::repeat(7);
    for (what, result, expected) in [
        ("a missing name", disk.stat("etc/nowhere").map(drop), io::ErrorKind::NotFound),
        ("a file as a directory", disk.list("etc/motd").map(drop), io::ErrorKind::NotADirectory),
        ("a way up", disk.remove("etc/../etc/motd"), io::ErrorKind::InvalidInput),
        ("the root", disk.remove("/"), io::ErrorKind::InvalidInput),
        ("a directory twice", disk.make_directory("etc", owner), io::ErrorKind::AlreadyExists),
        ("too much", disk.write("etc/endless", owner, &mut endless), io::ErrorKind::StorageFull),
    ] {
        match result {
            Err(Error::Ext4 { source, .. }) => assert_eq!(source.kind(), expected, "{what}"),
            other => anyhow::bail!("{what}: {other:?}"),
        }
    }
    assert_eq!(disk.list("etc")?.len(), 4, "{:?}", disk.list("etc")?);
    disk.finish()?;
    checked(&path)?;
    let reader = UpperDisk::open(&path)?;
    assert!(reader.remove("etc/motd").is_err(), "a disk that was opened to be read was changed");
    let none = directory.path().join("none");
    fs::write(&none, [0; 9000])?;
    assert!(matches!(UpperDisk::open(&none), Err(Error::Ext4 { .. })));
    Ok(())
}

#[test]
fn a_disk_grows_and_keeps_what_it_has() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("upper.ext4");
    let motd = UpperEntry::new("motd", 0o644, UpperEntryKind::File(b"hello\n".to_vec()));
    let owner = UpperOwner { mode: 0o644, uid: 0, gid: 0 };
    // 16 MiB is one short group; 5 GiB fit into the first table; from 16 GiB on groups keep their own descriptors.
    let sizes: [u64; 6] = [100 << 20, 128 << 20, (300 << 20) + 4096, 5 << 30, 40 << 30, 100 << 30];
    ext4::format(&path, &UpperOptions::new(1, [7; 16]), &[motd])?;
    for (index, size) in sizes.into_iter().enumerate() {
        ext4::grow(&path, size)?;
        let what = || format!("{size} bytes");
        checked(&path).map_err(|fault| fault.context(what()))?;
        assert_eq!(path.metadata()?.len(), size, "{}", what());
        assert!(path.metadata()?.blocks() * 512 < 64 << 20, "{} are not sparse", what());
        let disk = UpperDisk::edit(&path)?;
        disk.write(format!("written-{index}"), owner, &mut vec![7; 3 << 20].as_slice())?;
        disk.finish()?;
        checked(&path).map_err(|fault| fault.context(format!("written to with {}", what())))?;
    }
    // As large already: nothing changes.
    let before = fs::metadata(&path)?.modified()?;
    ext4::grow(&path, 1 << 30)?;
    assert_eq!(path.metadata()?.len(), 100 << 30);
    assert!(fs::metadata(&path)?.modified()? >= before);
    let disk = UpperDisk::open(&path)?;
    assert_eq!(content(&disk, "motd")?, b"hello\n");
    drop(disk);
    if is_root("mounting a grown disk") {
        let mount = Mount::ext4(&path)?;
        let free = run("df", &["--output=avail", "-BG", text(&mount.path)?])?;
        let free =
            free.lines().last().unwrap_or_default().trim().trim_end_matches('G').parse::<u64>()?;
        assert!(free > 95, "{free} GiB are free for the kernel");
        assert!(fs::read(mount.path.join("upper/written-5"))? == vec![7; 3 << 20]);
    }
    checked(&path)
}
