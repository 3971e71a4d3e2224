//! Connections to the catalogue's file: one that writes, and ones that leave no trace.
//!
//! SQLite's write-ahead log is what makes reading without a trace delicate: merely opening such a
//! file makes `-wal` and `-shm` beside it, also for a reader, and fails where that cannot be done.
//! So a reader looks first:
//!
//! ```text
//!  no log, or an empty one ── all is in the file: read it as immutable, no lock, nothing made
//!  a log with pages        ── a writer is or was there: join its log, whose files exist already
//! ```
//!
//! After an immutable read it looks again and throws the answer away if a writer came by. The
//! catalogue is never opened by other means than SQLite: closing any descriptor of the file would
//! drop the POSIX locks that SQLite holds on it in this process.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;
use std::{fs, io};

use sea_orm::sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sea_orm::{ConnectOptions, Database, DatabaseConnection, DbErr};

use crate::schema::with_suffix;

/// How long a call waits for another process's transaction. Transactions take milliseconds; one
/// that lasts longer than this belongs to a stopped process, and the user is told so.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a reader finds before it opens the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// Everything is in the file, which is in this state.
    Still(Stamp),
    /// The log holds pages that the file lacks.
    Logged,
}

/// Changes when the file does. Linux 6.13 and later give a fresh time to each change that follows a
/// look; before, two changes within one timer tick (4 ms) of each other can look alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Says how the catalogue at `path` can be read now; `None` if there is none.
pub(crate) fn condition(path: &Path) -> io::Result<Option<Condition>> {
    let Some(file) = metadata(path)? else { return Ok(None) };
    if metadata(&with_suffix(path, "-wal"))?.is_some_and(|log| log.len() > 0) {
        return Ok(Some(Condition::Logged));
    }
    Ok(Some(Condition::Still(Stamp {
        device: file.dev(),
        inode: file.ino(),
        size_bytes: file.len(),
        modified: (file.mtime(), file.mtime_nsec()),
        changed: (file.ctime(), file.ctime_nsec()),
    })))
}

/// A connection for a catalogue that is complete and may be changed.
pub(crate) async fn writing(path: &Path) -> Result<DatabaseConnection, DbErr> {
    connect(path, |options| options.journal_mode(SqliteJournalMode::Wal)).await
}

/// A connection for a file that is to become a catalogue. It has no write-ahead log yet, so that
/// the file is whole by itself whenever a transaction has ended.
pub(crate) async fn building(path: &Path) -> Result<DatabaseConnection, DbErr> {
    connect(path, |options| options).await
}

/// A connection that changes nothing, made for what [`condition`] found.
pub(crate) async fn reading(
    path: &Path,
    condition: &Condition,
) -> Result<DatabaseConnection, DbErr> {
    let immutable = matches!(condition, Condition::Still(_));
    connect(path, move |options| options.read_only(true).immutable(immutable)).await
}

fn metadata(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

async fn connect(
    path: &Path,
    options: impl Fn(SqliteConnectOptions) -> SqliteConnectOptions + Send + Sync + 'static,
) -> Result<DatabaseConnection, DbErr> {
    let path = path.to_owned();
    // The address only names the engine: a path in it would have to be escaped.
    let mut connect = ConnectOptions::new("sqlite:catalogue");
    connect
        .max_connections(1)
        .test_before_acquire(false)
        .sqlx_logging(false)
        .map_sqlx_sqlite_pool_opts(|pool| pool.idle_timeout(None).max_lifetime(None))
        .map_sqlx_sqlite_opts(move |sqlite| {
            let sqlite = sqlite
                .filename(&path)
                .create_if_missing(false)
                .busy_timeout(BUSY_TIMEOUT)
                .foreign_keys(true)
                .synchronous(SqliteSynchronous::Normal);
            options(sqlite)
        });
    Database::connect(connect).await
}
