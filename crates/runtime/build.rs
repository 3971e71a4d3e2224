//! Names this build of the crate: its version and a digest of its sources.
//!
//! The processes of a sandbox exchange plain structs that no release promises to keep. Two programs
//! understand each other exactly when they were made from the same sources, so that is what they
//! tell each other (`src/handover.rs`).

use std::{
    fs,
    path::{Path, PathBuf},
};

fn main() {
    println!("cargo::rerun-if-changed=src");
    let mut files = Vec::new();
    list(Path::new("src"), &mut files);
    files.sort();
    let digest = files.iter().fold(FNV_BASIS, |digest, file| {
        let name = file.to_str().expect("our files have UTF-8 names");
        let text = fs::read(file).expect("a source file can be read");
        fnv(fnv(digest, name.as_bytes()), &text)
    });
    println!("cargo::rustc-env=MSB_BUILD={}+{digest:016x}", env!("CARGO_PKG_VERSION"));
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("the sources can be listed").flatten() {
        match entry.path() {
            path if path.is_dir() => list(&path, files),
            path => files.push(path),
        }
    }
}

/// FNV-1a, 64 bits: tells sources apart that nobody has an interest in confusing.
fn fnv(digest: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(digest, |digest, byte| (digest ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;
