//! What was found right when it was last looked at, so that an untouched file is not read again.
//!
//! Whoever changes a file through the file system changes the time of its last change (`ctime` of
//! `stat(2)`), which no ordinary call sets. A copy of the directory is read once more.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::Path};

use serde::{Deserialize, Serialize};

use crate::{Digest, Error, Manifest, Result};

/// Name of the file; no part of the snapshot's content.
pub(crate) const SEEN: &str = "seen.json";

/// The state that the files of a snapshot were in when their content was checked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Seen {
    id: Digest,
    files: BTreeMap<String, State>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    inode: u64,
    size_bytes: u64,
    changed_s: i64,
    changed_ns: i64,
}

impl Seen {
    /// The state that the files are in now.
    pub(crate) fn now(directory: &Path, id: Digest, manifest: &Manifest) -> Result<Self> {
        let state = |name: &String| {
            let path = directory.join(name);
            let stat = fs::symlink_metadata(&path).map_err(Error::file("look at", &path))?;
            let state = State {
                inode: stat.ino(),
                size_bytes: stat.len(),
                changed_s: stat.ctime(),
                changed_ns: stat.ctime_nsec(),
            };
            Ok((name.clone(), state))
        };
        let files = manifest.files.keys().map(state).collect::<Result<_>>()?;
        Ok(Self { id, files })
    }

    /// Whether this is the state they were in when they were checked.
    pub(crate) fn is_noted(&self, directory: &Path) -> bool {
        let noted = fs::read(directory.join(SEEN)).ok();
        noted
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .is_some_and(|seen: Self| seen == *self)
    }

    /// Notes it. Where that cannot be done they are read again next time.
    pub(crate) fn note(&self, directory: &Path) {
        let path = directory.join(SEEN);
        let written = serde_json::to_vec(self)
            .map_err(std::io::Error::from)
            .and_then(|bytes| fs::write(&path, bytes));
        if let Err(error) = written {
            tracing::debug!(%error, path = %path.display(), "not noted");
        }
    }
}
