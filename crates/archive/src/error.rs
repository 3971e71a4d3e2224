//! Why packing or unpacking stopped.

use std::{
    io,
    path::{Path, PathBuf},
};

use rustix::io::Errno;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why packing or unpacking stopped. What was unpacked before stays; nothing half-written does.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file became shorter while it was read.
    #[error("read {}: it became shorter meanwhile", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
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
    /// The stream is no tar stream, or one of a kind that is not read.
    #[error("read the tar stream at byte {offset}: {what}")]
    Malformed {
        /// Where.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The stream could not be read.
    #[error("read the tar stream")]
    Read(#[source] io::Error),
    /// A member of the stream may not be made.
    #[error("unpack {}: {refusal}", path.display())]
    Refused {
        /// The member's name.
        path: PathBuf,
        /// Why not.
        refusal: Refusal,
    },
    /// The stream could not be written.
    #[error("write the tar stream")]
    Write(#[source] io::Error),
}

/// Why a member may not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// It is called otherwise than what was asked for.
    #[error("not what was asked for")]
    OtherName,
    /// Its name leads out of the directory.
    #[error("the name leads out of the directory")]
    Outside,
    /// It is a device, which is not made here.
    #[error("a device or named pipe, which is not made here")]
    Special,
}

impl Error {
    /// The file it happened to, if it happened to one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Changed { path } | Self::File { path, .. } | Self::Refused { path, .. } => {
                Some(path)
            }
            _ => None,
        }
    }

    /// What the kernel reported, if it did.
    pub fn io(&self) -> Option<&io::Error> {
        match self {
            Self::File { source, .. } | Self::Read(source) | Self::Write(source) => Some(source),
            _ => None,
        }
    }

    pub(crate) fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::File { action, path: path.as_ref().to_owned(), source: error.into() }
    }

    pub(crate) fn errno(action: &'static str, path: &Path, errno: Errno) -> Self {
        Self::file(action, path)(errno)
    }
}
