//! Making the catalogue and keeping its schema at the version of this build.
//!
//! `PRAGMA user_version` holds the number of applied steps, so that the usual open costs one small
//! query. Making and upgrading happen under a lock file next to the catalogue, one process at a
//! time. A new catalogue is built under another name and renamed, and an upgrade is one
//! transaction: a kill at any instant leaves no catalogue, the old one or the new one.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use microsandbox_migration::{Migrator, MigratorTrait, latest_version};
use sea_orm::{
    ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbBackend, DbErr,
    SqliteTransactionMode, Statement, TransactionOptions, TransactionTrait,
};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::connection;
use crate::error::{Error, Result};

/// How long to wait for a process that makes or upgrades the catalogue, which takes milliseconds.
const LOCK_DEADLINE: Duration = Duration::from_secs(30);

/// Makes the catalogue unless it is there: the file 0600, directories it needs 0700.
pub(crate) async fn create_if_missing(path: &Path) -> Result<()> {
    let failed = |source| Error::Create { path: path.to_owned(), source };
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;

    let _guard = lock(path).await?;
    if path.try_exists().map_err(failed)? {
        return Ok(());
    }
    let draft = with_suffix(path, ".new");
    remove_leftovers(&draft).map_err(failed)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    build(&draft)
        .await
        .map_err(|error| Error::Upgrade { path: path.to_owned(), source: error.into() })?;
    fs::rename(&draft, path).map_err(failed)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

/// Brings a catalogue that is behind up to date, and refuses one that is ahead.
pub(crate) async fn bring_up_to_date(path: &Path, connection: &DatabaseConnection) -> Result<()> {
    if !is_behind(path, connection).await? {
        return Ok(());
    }
    let _guard = lock(path).await?;
    if !is_behind(path, connection).await? {
        return Ok(());
    }
    upgrade(connection)
        .await
        .map_err(|error| Error::Upgrade { path: path.to_owned(), source: error.into() })
}

/// Refuses a catalogue whose schema is not the one this build reads.
pub(crate) async fn require_current(path: &Path, connection: &DatabaseConnection) -> Result<()> {
    if is_behind(path, connection).await? {
        let found = version(connection).await.map_err(|error| cannot_open(path, error))?;
        return Err(Error::SchemaOlder { path: path.to_owned(), found, needed: latest_version() });
    }
    Ok(())
}

/// Begins a transaction that may write, and does so at once: SQLite fails a transaction that
/// begins by reading and then writes if another process has written in between, whatever the
/// busy timeout. There is no other place in this crate where a writing transaction begins.
pub(crate) async fn begin_write(
    connection: &DatabaseConnection,
) -> Result<DatabaseTransaction, DbErr> {
    connection
        .begin_with_options(TransactionOptions {
            sqlite_transaction_mode: Some(SqliteTransactionMode::Immediate),
            ..TransactionOptions::default()
        })
        .await
}

/// `msb.db` to `msb.db-wal`: SQLite and we name companions by appending to the whole name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

async fn is_behind(path: &Path, connection: &DatabaseConnection) -> Result<bool> {
    let known = latest_version();
    let found = version(connection).await.map_err(|error| cannot_open(path, error))?;
    if found > known {
        return Err(Error::SchemaNewer { path: path.to_owned(), found, known });
    }
    Ok(found < known)
}

fn cannot_open(path: &Path, error: DbErr) -> Error {
    Error::Open { path: path.to_owned(), source: error.into() }
}

async fn version(connection: &DatabaseConnection) -> Result<u32, DbErr> {
    let query = Statement::from_string(DbBackend::Sqlite, "PRAGMA user_version");
    let row = connection.query_one_raw(query).await?;
    row.map_or(Ok(0), |row| row.try_get_by_index(0))
}

async fn build(draft: &Path) -> Result<(), DbErr> {
    let connection = connection::building(draft).await?;
    upgrade(&connection).await?;
    // Last, and kept by the file: every later connection finds a log already agreed on.
    connection.execute_unprepared("PRAGMA journal_mode = WAL").await?;
    connection.close().await
}

async fn upgrade(connection: &DatabaseConnection) -> Result<(), DbErr> {
    let transaction = begin_write(connection).await?;
    Migrator::up(&transaction, None).await?;
    let stamp = format!("PRAGMA user_version = {}", latest_version());
    transaction.execute_unprepared(&stamp).await?;
    transaction.commit().await
}

/// What a process that was killed while building left behind; the lock says it is gone.
fn remove_leftovers(draft: &Path) -> io::Result<()> {
    for suffix in ["", "-journal", "-wal", "-shm"] {
        match fs::remove_file(with_suffix(draft, suffix)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Takes the schema lock, which closing the returned file gives back.
async fn lock(path: &Path) -> Result<File> {
    let path = with_suffix(path, ".lock");
    match lock_file(&path).await {
        Ok(file) => Ok(file),
        Err(source) => Err(Error::LockSchema { path, source }),
    }
}

async fn lock_file(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::Error(error)) => return Err(error),
        Err(TryLockError::WouldBlock) => {}
    }
    // Not a task of the runtime: one that waits for a stopped process would keep it from ending.
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name("catalogue-lock".to_owned()).spawn(move || {
        // Whoever asked may have given up; the lock then goes with the unsent file.
        drop(sender.send(file.lock().map(|()| file)));
    })?;
    match timeout(LOCK_DEADLINE, receiver).await {
        Ok(Ok(locked)) => locked,
        Ok(Err(_)) | Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
