//! Names: small files that say which manifest a reference stands for.

use std::fs;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ImageStore;
use super::files::{read_fault, read_optional, write_atomically, write_fault};
use crate::{Digest, Error, Reference};

/// Longest encoded name used as it is; the rest of a file name's 255 bytes is for a digest in longer ones.
const MAX_FILE_NAME: usize = 180;

/// Content of a name's file, as JSON.
#[derive(Debug, Serialize, Deserialize)]
struct RefFile {
    reference: Reference,
    digest: Digest,
}

impl ImageStore {
    /// Every name and what it stands for. Files that are no names are passed over.
    pub(crate) fn refs(&self) -> Result<Vec<(Reference, Digest)>, Error> {
        let directory = self.refs_dir();
        let mut refs = Vec::new();
        for name in self.names_in(&directory)? {
            let Some(bytes) = read_optional(&directory.join(name))? else { continue };
            if let Ok(file) = serde_json::from_slice::<RefFile>(&bytes) {
                refs.push((file.reference, file.digest));
            }
        }
        refs.sort();
        Ok(refs)
    }

    /// Makes `reference` stand for `digest`.
    pub(crate) fn write_ref(&self, reference: &Reference, digest: Digest) -> Result<(), Error> {
        let path = self.ref_path(reference);
        let file = RefFile { reference: reference.clone(), digest };
        let text = serde_json::to_vec(&file)
            .map_err(|source| write_fault(&path, io::Error::other(source)))?;
        write_atomically(&path, &text)
    }

    pub(super) fn read_ref(&self, reference: &Reference) -> Result<Option<Digest>, Error> {
        let path = self.ref_path(reference);
        let Some(bytes) = read_optional(&path)? else { return Ok(None) };
        let file: RefFile = serde_json::from_slice(&bytes)
            .map_err(|source| read_fault(&path, io::Error::other(source)))?;
        Ok((file.reference == *reference).then_some(file.digest))
    }

    /// Whether there was such a name.
    pub(super) fn remove_ref(&self, reference: &Reference) -> Result<bool, Error> {
        let path = self.ref_path(reference);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(write_fault(&path, source)),
        }
    }

    pub(super) fn refs_dir(&self) -> PathBuf {
        self.root.join("refs")
    }

    fn ref_path(&self, reference: &Reference) -> PathBuf {
        self.refs_dir().join(encode(&reference.to_string()))
    }
}

/// A file name for a reference: everything but letters, digits, `.`, `_` and `-` as `%XX`.
fn encode(reference: &str) -> String {
    let mut name = String::new();
    for byte in reference.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => name.push(byte.into()),
            _ => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > MAX_FILE_NAME {
        name.truncate(MAX_FILE_NAME);
        name.push('-');
        name.push_str(&Digest::of(reference.as_bytes()).hex());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_names_are_readable_safe_and_bounded() {
        assert_eq!(encode("127.0.0.1:5000/a/b:1"), "127.0.0.1%3A5000%2Fa%2Fb%3A1");
        let long = "a/".repeat(120);
        assert_eq!(encode(&long).len(), MAX_FILE_NAME + 65);
        assert_ne!(encode(&long), encode(&format!("{long}b")));
    }
}
