//! Streams that want out of the directory they are unpacked in, or want the reader's memory.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    fs,
    io::{self, Read},
    path::Path,
};

use microsandbox_archive::{Error, Owners, Refusal, Unpack, unpack};
use proptest::prelude::*;
use tar::{EntryType, Header};

/// A member with these names, as they are.
fn member(entry_type: EntryType, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = Header::new_gnu();
    let old = header.as_old_mut();
    old.name[..name.len()].copy_from_slice(name.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(entry_type);
    header.set_mode(0o6755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(data.len() as u64);
    if matches!(entry_type, EntryType::Char | EntryType::Block) {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    let padding = data.len().next_multiple_of(512) - data.len();
    [header.as_bytes(), data, &vec![0; padding]].concat()
}

fn file(name: &str) -> Vec<u8> {
    member(EntryType::Regular, name, "", b"evil")
}

/// Unpacks below a fresh directory; nothing may change beside it.
fn try_unpack(members: &[Vec<u8>], only: Option<&str>) -> Result<(), Error> {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("target");
    fs::create_dir(&target).unwrap();
    fs::create_dir(folder.path().join("outside")).unwrap();
    fs::write(folder.path().join("outside/f"), "safe").unwrap();
    let how = Unpack { only: only.map(Into::into), owners: Owners::Process };
    let done = unpack(&members.concat()[..], &target, &how);
    assert_eq!(fs::read_to_string(folder.path().join("outside/f")).unwrap(), "safe");
    assert_eq!(fs::read_dir(folder.path().join("outside")).unwrap().count(), 1);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    done
}

#[test]
fn names_and_links_that_lead_out_are_refused() {
    let link = |name: &str, target: &str| member(EntryType::Symlink, name, target, b"");
    let hard = |name: &str, target: &str| member(EntryType::Link, name, target, b"");
    for members in [
        vec![file("../outside/f")],
        vec![file("a/../../outside/f")],
        vec![file("/etc/evil")],
        vec![file("..")],
        vec![link("l", "../outside"), file("l/f")],
        vec![link("l", "/tmp"), file("l/evil")],
        vec![link("a", "."), link("b", "a/.."), file("b/outside/f")],
        vec![hard("h", "../outside/f")],
        vec![link("l", "../outside"), hard("h", "l/f")],
        vec![member(EntryType::Directory, "../outside", "", b"")],
    ] {
        let done = try_unpack(&members, None);
        assert!(matches!(done, Err(Error::Refused { refusal: Refusal::Outside, .. })), "{done:?}");
    }
    // A directory that is a link out: told as an error, not entered.
    let through = [link("l", "../outside"), member(EntryType::Directory, "l", "", b"")];
    assert!(try_unpack(&through, None).is_err());
    // Links themselves are harmless, and one that stays inside may be used.
    try_unpack(&[link("l", "/etc/passwd"), link("m", "../..")], None).unwrap();
    let inside = [member(EntryType::Directory, "d", "", b""), link("l", "d"), file("l/f")];
    try_unpack(&inside, None).unwrap();
}

#[test]
fn only_what_was_asked_for_is_made() {
    try_unpack(&[file("x")], Some("x")).unwrap();
    for members in [vec![file("y")], vec![file("x"), file(".bashrc")], vec![file("xy/z")]] {
        let done = try_unpack(&members, Some("x"));
        let other = matches!(done, Err(Error::Refused { refusal: Refusal::OtherName, .. }));
        assert!(other, "{done:?}");
    }
}

#[test]
fn devices_are_refused_and_set_id_bits_are_not_taken() {
    use std::os::unix::fs::PermissionsExt;
    for entry_type in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let done = try_unpack(&[member(entry_type, "d", "", b"")], None);
        let special = matches!(done, Err(Error::Refused { refusal: Refusal::Special, .. }));
        assert!(special, "{done:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let how = Unpack { only: None, owners: Owners::Process };
    unpack(&file("f")[..], folder.path(), &how).unwrap();
    let mode = fs::metadata(folder.path().join("f")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
}

/// Reads without end.
struct Endless<R>(R);

impl<R: Read> Read for Endless<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => {
                buffer.fill(b'1');
                Ok(buffer.len())
            }
            len => Ok(len),
        }
    }
}

#[test]
fn records_without_end_are_refused_before_they_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let how = Unpack { only: None, owners: Owners::Process };
    for entry_type in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry_type);
        header.set_size(1 << 40);
        header.set_cksum();
        let stream = Endless(&header.as_bytes()[..]);
        let done = unpack(stream, folder.path(), &how);
        assert!(matches!(done, Err(Error::Malformed { .. })), "{done:?}");
    }
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNUSparse);
    header.as_gnu_mut().unwrap().set_is_extended(true);
    header.as_gnu_mut().unwrap().set_real_size(1 << 40);
    header.set_size(0);
    header.set_cksum();
    let done = unpack(Endless(&header.as_bytes()[..]), folder.path(), &how);
    assert!(matches!(done, Err(Error::Malformed { .. })), "{done:?}");
}

fn check_garbage(stream: &[u8], target: &Path) {
    let how = Unpack { only: None, owners: Owners::Process };
    // Whatever it is, it ends without a panic.
    let _ = unpack(stream, target, &how);
}

proptest! {
    #[test]
    fn garbage_ends_without_a_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..3000),
        entry_type in any::<u8>(),
        size in 0u64..5000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        check_garbage(&bytes, folder.path());
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..1].copy_from_slice(b"f");
        header.set_entry_type(EntryType::new(entry_type));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(size);
        header.set_cksum();
        check_garbage(&[&header.as_bytes()[..], &bytes, header.as_bytes()].concat(), folder.path());
    }
}
