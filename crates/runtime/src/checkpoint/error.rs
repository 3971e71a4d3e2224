//! What can be wrong with a checkpoint.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a checkpoint was not written, or is not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// It is not what was saved.
    #[error("trust {}: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// It was saved by a machine of another shape.
    #[error("restore a machine that was saved with another {part}")]
    OtherShape {
        /// The part that differs.
        part: &'static str,
    },
    /// A file could not be read.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
    /// A file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },
}

impl CheckpointError {
    pub(crate) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read { path: path.to_owned(), source }
    }

    pub(crate) fn write(path: PathBuf) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Write { path, source }
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Damaged { .. } => {
                Some("it was altered or cut short and cannot be used; remove it")
            }
            Self::OtherShape { .. } => {
                Some("install the version that saved it, or start without its memory")
            }
            Self::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Some("make room on the file system that holds it")
            }
            _ => None,
        }
    }
}
