//! What a tree has comes out again, through our own stream and through GNU tar on either side.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use microsandbox_archive::{Error, Owners, Pack, Unpack, pack, unpack};

/// What is compared of a file: all that a copy keeps.
type Facts = (u32, i64, i64, u64, Vec<u8>, u64);

/// Path, facts and contents of everything below `root`; times of links are left out.
fn manifest(root: &Path) -> BTreeMap<PathBuf, Facts> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let stat = fs::symlink_metadata(&path).unwrap();
            let contents = if stat.is_dir() {
                open.push(path.clone());
                Vec::new()
            } else if stat.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().as_bytes().to_vec()
            } else {
                fs::read(&path).unwrap()
            };
            let size = if stat.is_dir() { 0 } else { stat.len() };
            let links = if stat.is_dir() { 0 } else { stat.nlink() };
            let facts = (stat.mode(), stat.mtime(), stat.mtime_nsec(), size, contents, links);
            found.insert(path.strip_prefix(root).unwrap().to_owned(), facts);
        }
    }
    found
}

fn set_time(path: &Path, seconds: u64, nanoseconds: u32) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// A tree with everything that is hard to keep.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("deep/er/est")).unwrap();
    fs::write(root.join("plain"), "text\n").unwrap();
    fs::write(root.join("empty"), "").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"not\xffutf-8")), "odd").unwrap();
    let long = "long-".repeat(40);
    fs::create_dir(root.join(&long)).unwrap();
    fs::write(root.join(&long).join("inside"), "x").unwrap();
    symlink(root.join(&long), root.join("to-long")).unwrap();
    symlink("nowhere/at all", root.join("dangling")).unwrap();
    fs::hard_link(root.join("plain"), root.join("deep/same")).unwrap();
    let mut holes = File::create(root.join("holes")).unwrap();
    for block in [0_u64, 3, 40, 41, 90, 500, 700] {
        holes.seek(SeekFrom::Start(block << 16)).unwrap();
        holes.write_all(&[7; 5000]).unwrap();
    }
    holes.set_len(80 << 20).unwrap();
    File::create(root.join("hole")).unwrap().set_len(10 << 20).unwrap();
    fs::write(root.join("secret"), "s").unwrap();
    fs::set_permissions(root.join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    set_time(&root.join("plain"), 1_000_000_000, 123_456_789);
    set_time(&root.join("holes"), 1, 0);
    fs::set_permissions(root.join("deep/er"), fs::Permissions::from_mode(0o500)).unwrap();
    set_time(&root.join("deep/er/est"), 2_000_000_000, 1);
    set_time(&root.join("deep"), 3, 4);
}

fn packed(path: &Path, name: &str) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(&mut stream, &Pack { path, name: Path::new(name), follow: false }).unwrap();
    stream
}

fn all() -> Unpack {
    Unpack { only: None, owners: Owners::Process }
}

fn gnu_tar(arguments: &[&str], directory: &Path, input: &[u8]) -> Vec<u8> {
    let mut tar = Command::new("tar")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || {
        let written = stdin.write_all(&input);
        assert!(written.is_ok() || written.unwrap_err().kind() == io::ErrorKind::BrokenPipe);
    });
    let output = tar.wait_with_output().unwrap();
    feeder.join().unwrap();
    assert!(output.status.success(), "tar {arguments:?}");
    output.stdout
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    make_tree(&from);
    fs::create_dir(&to).unwrap();
    let stream = packed(&from, "");
    assert!(stream.len() < 1 << 20, "holes are not stored: {}", stream.len());
    unpack(&stream[..], &to, &all()).unwrap();
    assert_eq!(manifest(&to), manifest(&from));
    assert!(fs::metadata(to.join("holes")).unwrap().blocks() < 2000, "holes stay holes");
    let same = |name: &str| fs::metadata(to.join(name)).unwrap().ino();
    assert_eq!(same("plain"), same("deep/same"));
    // Once more over what is there.
    unpack(&stream[..], &to, &all()).unwrap();
    assert_eq!(manifest(&to), manifest(&from));
}

#[test]
fn gnu_tar_reads_what_we_write_and_we_read_what_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let from = folder.path().join("from");
    make_tree(&from);
    let expected = manifest(&from);
    let to = folder.path().join("by-tar");
    fs::create_dir(&to).unwrap();
    gnu_tar(&["-xpf", "-"], &to, &packed(&from, ""));
    assert_eq!(manifest(&to), expected);
    for (format, whole_seconds) in [
        (&["--format=posix"][..], false),
        (&["--format=posix", "-S"], false),
        (&["--format=gnu"], true),
        (&["--format=gnu", "-S"], true),
    ] {
        let to = folder.path().join(format.join(""));
        fs::create_dir(&to).unwrap();
        let stream = gnu_tar(&[format, &["-cf", "-", "."]].concat(), &from, b"");
        unpack(&stream[..], &to, &all()).unwrap();
        let mut expected = expected.clone();
        let mut found = manifest(&to);
        if whole_seconds {
            for facts in expected.values_mut().chain(found.values_mut()) {
                facts.2 = 0;
            }
        }
        assert_eq!(found, expected, "{format:?}");
    }
}

#[test]
fn a_single_file_has_the_name_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "text").unwrap();
    let stream = packed(&folder.path().join("a"), "b");
    let only_b = Unpack { only: Some("b".into()), owners: Owners::Process };
    unpack(&stream[..], folder.path(), &only_b).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("b")).unwrap(), "text");
    let contents = Pack { path: &folder.path().join("a"), name: Path::new(""), follow: false };
    assert!(matches!(pack(io::sink(), &contents), Err(Error::File { .. })));
}

#[test]
fn what_is_there_is_replaced_but_no_directory_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d/f"), "new").unwrap();
    fs::create_dir_all(to.join("d")).unwrap();
    fs::write(folder.path().join("elsewhere"), "safe").unwrap();
    symlink(folder.path().join("elsewhere"), to.join("d/f")).unwrap();
    unpack(&packed(&from, "")[..], &to, &all()).unwrap();
    assert!(fs::symlink_metadata(to.join("d/f")).unwrap().is_file());
    assert_eq!(fs::read_to_string(folder.path().join("elsewhere")).unwrap(), "safe");

    fs::remove_dir_all(from.join("d")).unwrap();
    fs::write(from.join("d"), "a file").unwrap();
    assert!(unpack(&packed(&from, "")[..], &to, &all()).is_err());
    assert_eq!(fs::read_to_string(to.join("d/f")).unwrap(), "new");
    let left: Vec<_> = fs::read_dir(&to).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["d"], "nothing half-written is left");
}

#[test]
fn attributes_of_users_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("f"), "x").unwrap();
    let set = rustix::fs::setxattr(
        from.join("f"),
        "user.note",
        b"\0binary\n",
        rustix::fs::XattrFlags::empty(),
    );
    if set == Err(rustix::io::Errno::OPNOTSUPP) {
        return;
    }
    set.unwrap();
    unpack(&packed(&from, "")[..], &to, &all()).unwrap();
    let mut value = [0; 64];
    let len = rustix::fs::getxattr(to.join("f"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..len], b"\0binary\n");
}

#[test]
fn a_stream_that_is_cut_leaves_nothing_half_written() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("from"), folder.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    let big = File::create(from.join("big")).unwrap();
    big.write_all_at(&vec![1; 1 << 20], 0).unwrap();
    let stream = packed(&from, "");
    for len in [100, 700, 5000, 1 << 19] {
        assert!(unpack(&stream[..len], &to, &all()).is_err(), "cut at {len}");
        assert_eq!(fs::read_dir(&to).unwrap().count(), 0, "cut at {len}");
    }
}
