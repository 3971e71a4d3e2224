//! Machines that are saved while they run: what keeps them from it, and from going on elsewhere.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use microsandbox::env;

use crate::{
    disk::SmallDisk,
    home::{Home, Ran, guest},
};

/// A sandbox `a` that runs.
fn running(home: &Home) {
    home.check(&["create", "-q", "--memory", "192", "--name", "a", "busybox"], 0, "a\n", "");
}

/// It goes on running, and nothing of what failed is left.
fn is_unharmed(home: &Home) {
    home.check(&["exec", "a", "--", "echo", "alive"], 0, "alive\n", "");
    assert_eq!(home.run(&["ls", "-q"]).stdout, "a\n");
    assert_eq!(names(&home.path().join("sandboxes"), ""), ["a"]);
    assert_eq!(names(&home.path().join("sandboxes/a"), "saved-"), [""; 0]);
    assert_eq!(names(&home.path().join("snapshots"), "."), [""; 0]);
}

/// Names in a directory that begin with `prefix`.
fn names(directory: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(prefix)).collect()
}

/// A failure for want of space that names the file and the remedy.
#[track_caller]
fn lacks_space(ran: &Ran, file: &str) {
    assert_eq!(ran.code, 125, "{ran:?}");
    for part in [file, "No space left on device", "\nhint: make room on the file system"] {
        assert!(ran.stderr.contains(part), "{part:?} is missing in {ran:?}");
    }
}

#[test]
fn machine_that_finds_no_space_is_not_saved_and_goes_on() {
    let home = Home::with_busybox();
    let disk = SmallDisk::mount(home.path().join("sandboxes"), "16M");
    running(&home);
    let save = ["snapshot", "create", "s", "--from", "a", "--full"];
    lacks_space(&home.run(&save), "/sandboxes/a/saved-");
    is_unharmed(&home);
    lacks_space(&home.run(&["fork", "a", "-n", "b"]), "/sandboxes/a/saved-");
    is_unharmed(&home);
    disk.resize("128M");
    // The snapshot's own place is full, and then it is not.
    let place = SmallDisk::mount(home.path().join("place"), "16M");
    let path = home.path().join("place");
    let elsewhere = [&save[..], &["--dest-dir", path.to_str().unwrap()]].concat();
    lacks_space(&home.run(&elsewhere), "/saved-");
    assert_eq!(names(&path, ""), [""; 0]);
    is_unharmed(&home);
    place.resize("128M");
    assert_eq!(home.run(&elsewhere).code, 0);
    is_unharmed(&home);
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn children_that_find_no_space_are_all_taken_back() {
    let home = Home::with_busybox();
    let disk = SmallDisk::mount(home.path().join("sandboxes"), "160M");
    running(&home);
    let fill = "head -c 30000000 /dev/urandom > /root/filled; sync";
    home.check(&["exec", "a", "--", "sh", "-c", fill], 0, "", "");
    let fork = ["fork", "a", "-n", "b", "-n", "c", "-n", "d", "-n", "e", "-n", "f"];
    lacks_space(&home.run(&fork), "/upper.ext4");
    is_unharmed(&home);
    disk.resize("512M");
    home.check(&fork, 0, "b\nc\nd\ne\nf\n", "");
    home.check(&["exec", "f", "--", "echo", "alive"], 0, "alive\n", "");
    assert_eq!(home.run(&["rm", "-f", "--all"]).code, 0);
    assert_eq!(home.residue(), Vec::<String>::new());
}

/// A copy of a file, with bytes behind it that nobody reads.
fn longer(file: &Path, to: PathBuf) -> PathBuf {
    fs::copy(file, &to).unwrap();
    fs::OpenOptions::new().append(true).open(&to).unwrap().write_all(&[0; 512]).unwrap();
    to
}

#[test]
fn machine_of_another_shape_is_refused_by_name() {
    let home = Home::with_busybox();
    running(&home);
    let taken = home.run(&["snapshot", "create", "s", "--from", "a", "--full"]);
    assert_eq!(taken.code, 0, "{taken:?}");
    let restore = ["restore", "-q", "s", "-n", "b"];
    let refused = |ran: Ran, part: &str| {
        assert_eq!(ran.code, 125, "{ran:?}");
        assert!(ran.stderr.contains(&format!("was saved with another {part}\n")), "{ran:?}");
        is_unharmed(&home);
    };

    let others = tempfile::tempdir().unwrap();
    let kernel = longer(&guest().join("vmlinux"), others.path().join("vmlinux"));
    refused(home.end(home.msb(&restore).env(env::MSB_KERNEL, kernel)), "guest kernel");

    let program = find_qemu();
    longer(&program, others.path().join(program.file_name().unwrap()));
    let path = format!("{}:{}", others.path().display(), env::read_text(env::PATH).unwrap());
    refused(home.end(home.msb(&restore).env(env::PATH, path)), "VMM");

    let guests = home.path().join("guest");
    fs::create_dir(guests.join("other")).unwrap();
    symlink(guest().join("vmlinux"), guests.join("other/vmlinux")).unwrap();
    longer(&guest().join("initramfs.cpio"), guests.join("other/initramfs.cpio"));
    fs::write(guests.join("current"), "other").unwrap();
    refused(home.run(&restore), "agent");
    fs::write(guests.join("current"), "test").unwrap();

    // What one asks for cannot be had, and what the definition says is not believed.
    let more = [&restore[..], &["--cpus", "2"]].concat();
    let ran = home.run(&more);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("keeps its processors"), "{ran:?}");
    let manifest = home.path().join("snapshots/s/snapshot.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    let altered = whole.replacen("\"cpus\": 1", "\"cpus\": 2", 1);
    assert_ne!(altered, whole, "{whole}");
    fs::write(&manifest, altered).unwrap();
    refused(home.run(&restore), "set of devices, processors or memory");
    fs::write(&manifest, whole).unwrap();

    home.check(&restore, 0, "b\n", "");
    home.check(&["exec", "b", "--", "echo", "alive"], 0, "alive\n", "");
    home.check(&["rm", "-f", "a", "b"], 0, "a\nb\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

fn find_qemu() -> PathBuf {
    let path = env::read(env::PATH).unwrap();
    let places = std::env::split_paths(&path).map(|folder| folder.join("qemu-system-x86_64"));
    places.into_iter().find(|program| program.is_file()).expect("QEMU is installed")
}
