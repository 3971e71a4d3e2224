//! Why a snapshot operation stopped.

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::Digest;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a snapshot operation stopped. Nothing half-made stays in the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file is not what its manifest says.
    #[error("{} is not what its manifest says: {found} instead of {expected}", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
        /// What the manifest says.
        expected: Digest,
        /// What was found.
        found: Digest,
    },
    /// A snapshot of that name exists.
    #[error("a snapshot named '{name}' exists")]
    AlreadyExists {
        /// The name.
        name: String,
    },
    /// An archive could not be written or read.
    #[error(transparent)]
    Archive(microsandbox_archive::Error),
    /// An archive holds far more than its own size.
    #[error(
        "the archive unpacks to more than {limit_bytes} bytes, which its size does not justify"
    )]
    Bomb {
        /// Where reading stopped.
        limit_bytes: u64,
    },
    /// A file could not be used.
    #[error("{action} {}", path.display())]
    File {
        /// Verb of the failed operation.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
    /// A manifest is no manifest.
    #[error("read the manifest {}", path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A name that no snapshot can have.
    #[error("a snapshot cannot be named {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// No snapshot is there.
    #[error("no snapshot is named '{name}'")]
    NotFound {
        /// What was asked for: a name, an id or a path.
        name: String,
    },
    /// A file of a snapshot has another length than its manifest says, or is no file.
    #[error("{} is not what its manifest says: {what}", path.display())]
    Unlike {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// A snapshot was written by a version with another format.
    #[error("{} has format {found}; this version reads {known}", path.display())]
    Version {
        /// The manifest.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What is read here.
        known: u32,
    },
}

impl Error {
    /// Whether a snapshot is there and damaged.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Altered { .. } | Self::Manifest { .. } | Self::Unlike { .. })
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::AlreadyExists { name } => Some(format!("msb snapshot rm {name}")),
            Self::NotFound { .. } => Some("`msb snapshot ls` shows the snapshots there are".into()),
            Self::Version { found, known, .. } if found > known => {
                Some("use a newer version of microsandbox".into())
            }
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room on the file system that the snapshot goes to".into())
            }
            error if error.is_damage() => Some(
                "it cannot be restored; import it again where there is an archive of it".into(),
            ),
            _ => None,
        }
    }

    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::File { action, path: path.as_ref().to_owned(), source: error.into() }
    }
}
