//! Why the catalogue could not answer, and what the user can do about it.

use std::path::PathBuf;
use std::{fmt, io};

use sea_orm::{DbErr, RuntimeErr};

use crate::sandbox::SandboxId;

/// What every call of this crate answers.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a catalogue operation stopped. What was being written is not there at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The catalogue's file or its directory could not be made.
    #[error("create catalogue {}", path.display())]
    Create {
        /// The catalogue.
        path: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },
    /// The lock that keeps two processes from changing the schema at once could not be taken.
    #[error("lock {} to change the catalogue's schema", path.display())]
    LockSchema {
        /// The lock file.
        path: PathBuf,
        /// What the file system reported; `TimedOut` when another process kept it.
        #[source]
        source: io::Error,
    },
    /// A sandbox of that name is already in the catalogue.
    #[error("sandbox name {name:?} is taken")]
    NameTaken {
        /// The name asked for.
        name: String,
    },
    /// The sandbox to change is not in the catalogue.
    #[error("no sandbox with {id} in the catalogue")]
    NoSuchSandbox {
        /// The sandbox asked for.
        id: SandboxId,
    },
    /// The file could not be opened as a catalogue.
    #[error("open catalogue {}", path.display())]
    Open {
        /// The catalogue.
        path: PathBuf,
        /// What the database reported.
        #[source]
        source: DatabaseFault,
    },
    /// A question could not be answered.
    #[error("read {what} from catalogue {}", path.display())]
    Read {
        /// What was asked for.
        what: &'static str,
        /// The catalogue.
        path: PathBuf,
        /// What the database reported.
        #[source]
        source: DatabaseFault,
    },
    /// A writing call was made on a catalogue opened with
    /// [`open_existing`](crate::Catalogue::open_existing).
    #[error("catalogue {} was opened for reading only", path.display())]
    ReadOnly {
        /// The catalogue.
        path: PathBuf,
    },
    /// The file or its directory could not be looked at.
    #[error("look at catalogue {}", path.display())]
    Stat {
        /// The catalogue.
        path: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },
    /// The catalogue was written by a newer microsandbox.
    #[error(
        "catalogue {} has schema version {found}, newer than {known} of this microsandbox",
        path.display()
    )]
    SchemaNewer {
        /// The catalogue.
        path: PathBuf,
        /// Version the file has.
        found: u32,
        /// Newest version this build knows.
        known: u32,
    },
    /// The catalogue was written by an older microsandbox, and readers change nothing.
    #[error(
        "catalogue {} has schema version {found}, older than {needed} of this microsandbox",
        path.display()
    )]
    SchemaOlder {
        /// The catalogue.
        path: PathBuf,
        /// Version the file has.
        found: u32,
        /// Version this build reads.
        needed: u32,
    },
    /// The schema could not be brought up to date; it is as it was.
    #[error("bring the schema of catalogue {} up to date", path.display())]
    Upgrade {
        /// The catalogue.
        path: PathBuf,
        /// What the database reported.
        #[source]
        source: DatabaseFault,
    },
    /// A change could not be stored.
    #[error("write {what} to catalogue {}", path.display())]
    Write {
        /// What was being stored.
        what: &'static str,
        /// The catalogue.
        path: PathBuf,
        /// What the database reported.
        #[source]
        source: DatabaseFault,
    },
}

impl Error {
    /// What the user can do, where there is something to do.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Create { path, .. } | Self::Stat { path, .. } => {
                let directory = path.parent().unwrap_or(path);
                Some(format!("check that you may read and write {}", directory.display()))
            }
            Self::LockSchema { path, .. } => {
                Some(format!("see who holds it with `fuser -v {}`", path.display()))
            }
            Self::NameTaken { name } => {
                Some(format!("choose another name, or remove {name:?} first"))
            }
            Self::NoSuchSandbox { .. } | Self::ReadOnly { .. } => None,
            Self::SchemaNewer { .. } => {
                Some("update microsandbox, or point MSB_HOME at another directory".to_owned())
            }
            Self::SchemaOlder { .. } => {
                Some("any command that creates, starts or removes a sandbox upgrades it".to_owned())
            }
            Self::Open { path, source }
            | Self::Read { path, source, .. }
            | Self::Upgrade { path, source }
            | Self::Write { path, source, .. } => source.hint(path),
        }
    }

    /// What the database reported, if it was the database.
    pub fn fault(&self) -> Option<&DatabaseFault> {
        match self {
            Self::Open { source, .. }
            | Self::Read { source, .. }
            | Self::Upgrade { source, .. }
            | Self::Write { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// What the database engine reported; which engine that is stays this crate's business.
pub struct DatabaseFault(DbErr);

/// The faults a user can do something about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// Another process kept the catalogue locked for longer than calls wait.
    Busy,
    /// The file cannot be opened with the rights this process has.
    CannotOpen,
    /// The file is not a catalogue, or is damaged.
    Damaged,
    /// The file system has no space left, or a quota is used up.
    Full,
    /// Anything else; the message says what.
    Other,
    /// The file, its directory or its file system is read-only.
    ReadOnly,
}

impl DatabaseFault {
    /// Sorts the fault into what can be done about it.
    pub fn kind(&self) -> FaultKind {
        // The low byte of an extended result code is the primary one: sqlite.org/rescode.html.
        match self.code().map(|code| code & 0xff) {
            Some(5 | 6) => FaultKind::Busy,
            Some(8) => FaultKind::ReadOnly,
            Some(11 | 26) => FaultKind::Damaged,
            Some(13) => FaultKind::Full,
            Some(3 | 14) => FaultKind::CannotOpen,
            _ => FaultKind::Other,
        }
    }

    fn hint(&self, path: &std::path::Path) -> Option<String> {
        let path = path.display();
        match self.kind() {
            FaultKind::Busy => Some(format!("see who holds it with `fuser -v {path}`")),
            FaultKind::CannotOpen | FaultKind::ReadOnly => {
                Some(format!("check that you may read and write {path} and its directory"))
            }
            FaultKind::Damaged => Some(format!(
                "move {path} and the -wal and -shm files beside it away; a new catalogue is made, \
                 images stay, and sandboxes have to be created again"
            )),
            FaultKind::Full => Some(format!("free space on the file system of {path}")),
            FaultKind::Other => None,
        }
    }

    fn code(&self) -> Option<u32> {
        match self.driver_error()? {
            sea_orm::SqlxError::Database(error) => error.code()?.parse().ok(),
            _ => None,
        }
    }

    fn driver_error(&self) -> Option<&sea_orm::SqlxError> {
        match &self.0 {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => Some(error),
            _ => None,
        }
    }
}

impl From<DbErr> for DatabaseFault {
    fn from(error: DbErr) -> Self {
        Self(error)
    }
}

impl fmt::Display for DatabaseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.driver_error() {
            Some(sea_orm::SqlxError::Database(error)) => f.write_str(error.message()),
            Some(error) => error.fmt(f),
            None => self.0.fmt(f),
        }
    }
}

impl fmt::Debug for DatabaseFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for DatabaseFault {}
