//! What is fuzzed: everything that comes from a registry, an archive or a disk.

use std::error::Error;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::Command;

use microsandbox_fuzz::Target;
use microsandbox_image::ext4::{self, UpperDisk, UpperEntry, UpperEntryKind, UpperOptions};
use microsandbox_image::{Reference, fuzz};

/// All of them.
pub(crate) const TARGETS: &[Target] = &[
    Target { name: "layer", run: layer, repair: seal_headers },
    Target { name: "manifest", run: manifest, repair: |_| {} },
    Target { name: "reference", run: reference, repair: |_| {} },
    Target { name: "upper", run: upper, repair: |_| {} },
];

fn layer(input: &[u8]) -> String {
    match fuzz::layer(input) {
        Ok(()) => format!("a layer of 2^{} bytes", (input.len() + 1).ilog2()),
        Err(error) => words(&error),
    }
}

fn manifest(input: &[u8]) -> String {
    fuzz::manifest(input).map_or_else(|error| words(&error), |()| "a document".to_owned())
}

fn reference(input: &[u8]) -> String {
    let text = String::from_utf8_lossy(input);
    match text.parse::<Reference>() {
        Ok(reference) => {
            let again: Reference = reference.to_string().parse().expect("what it prints is one");
            assert_eq!(again, reference, "it reads what it has printed");
            let familiar: Reference = reference.familiar().parse().expect("so is the short form");
            assert_eq!(familiar, reference, "the short form is the same name");
            let (tag, digest) = (reference.tag().is_some(), reference.digest().is_some());
            format!("{} {tag} {digest}", reference.is_loopback())
        }
        Err(error) => words(&error),
    }
}

/// Reads the input as a list of entries, and formats a disk with them. What could be formatted is read back.
fn upper(input: &[u8]) -> String {
    // In memory where that can be had: formatting waits for the disk, which is not what is tried here.
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
    let directory = directory.expect("there is room for a folder");
    let path = directory.path().join("upper");
    let entries = entries(input);
    if let Err(error) = ext4::format(&path, &UpperOptions::new(16 << 20, [1; 16]), &entries) {
        return words(&error);
    }
    let disk = UpperDisk::open(&path).expect("what was formatted is opened");
    for entry in &entries {
        let stat = disk.stat(&entry.path).expect("what was written in is there");
        if let UpperEntryKind::File(bytes) = &entry.kind {
            let mut found = Vec::new();
            disk.read(&entry.path, &mut found).expect("a file is read");
            assert!(found == *bytes, "{} has other bytes", entry.path.display());
            assert_eq!((stat.uid, stat.mode), (entry.uid, entry.mode & 0o7777));
        }
    }
    drop(disk);
    // The outside judge takes longer than all of the above: it sees one disk in sixteen.
    if input.len().is_multiple_of(16) {
        let judge = Command::new("e2fsck").args(["-f", "-n"]).arg(&path).output();
        let verdict = judge.expect("e2fsck is there: `cargo xtask test --prepare` installs it");
        assert!(verdict.status.success(), "{}", String::from_utf8_lossy(&verdict.stdout));
    }
    format!("a disk with {} entries", entries.len())
}

/// `kind | length | path | …`, as long as there are bytes; the same path once.
fn entries(mut input: &[u8]) -> Vec<UpperEntry> {
    let mut entries: Vec<UpperEntry> = Vec::new();
    while let [kind, length, rest @ ..] = input {
        let (path, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        input = rest;
        let path = PathBuf::from(OsStr::from_bytes(path));
        let content = vec![*kind; usize::from(*length) * usize::from(*kind) * 7];
        let kind = match kind % 4 {
            0 => UpperEntryKind::Directory,
            1 => UpperEntryKind::File(content),
            2 => UpperEntryKind::Symlink(path.clone()),
            _ => UpperEntryKind::Whiteout,
        };
        let mut entry = UpperEntry::new(path, u16::from(*length) << 4, kind);
        entry.uid = u32::from(*length) << 20;
        entries.push(entry);
    }
    entries
}

/// Puts the right checksum into every block that looks like a tar header.
fn seal_headers(input: &mut [u8]) {
    for block in input.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// The whole chain of an error, without what differs from input to input.
fn words(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    let quoted = text.split('"').step_by(2);
    quoted.flat_map(|part| part.chars().filter(|c| !c.is_ascii_digit())).take(200).collect()
}
