//! The catalogue as callers hold it, and the two ways through which every query goes.

use std::path::{Path, PathBuf};

use sea_orm::sea_query::SelectStatement;
use sea_orm::{ConnectionTrait, DatabaseConnection, DatabaseTransaction, DbErr, QueryResult};

use crate::connection::{self, Condition};
use crate::error::{Error, Result};
use crate::schema;

/// How often an answer is thrown away because a writer came by, before the reader joins the log
/// whatever it finds: right in any case, but it may then be the reader that makes the log's files.
const UNDISTURBED_TRIES: usize = 4;

/// The catalogue of one home. Cheap to clone; clones share one connection.
///
/// Any number of processes may hold the same catalogue. A call that writes waits up to 10 seconds
/// for another writer, and has either happened entirely when it returns or not at all.
#[derive(Debug, Clone)]
pub struct Catalogue {
    path: PathBuf,
    access: Access,
}

#[derive(Debug, Clone)]
enum Access {
    Full(DatabaseConnection),
    Reading,
}

impl Catalogue {
    /// Opens the catalogue at `path` for reading and writing; makes it if it is missing (the file
    /// 0600, missing directories 0700) and upgrades it if an older microsandbox wrote it.
    ///
    /// Must be called within a tokio runtime whose timers are enabled.
    ///
    /// # Errors
    /// [`Error::Create`], [`Error::LockSchema`], [`Error::Open`], [`Error::Upgrade`] and
    /// [`Error::SchemaNewer`]; a catalogue that was there is as it was.
    ///
    /// # Cancel safety
    /// Dropping the future leaves no catalogue, the old one or the new one.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        schema::create_if_missing(&path).await?;
        let connection = connection::writing(&path)
            .await
            .map_err(|error| Error::Open { path: path.clone(), source: error.into() })?;
        schema::bring_up_to_date(&path, &connection).await?;
        Ok(Self { path, access: Access::Full(connection) })
    }

    /// The catalogue at `path` for reading, if there is one.
    ///
    /// Makes, upgrades, changes and locks nothing, so it works on a read-only mount and never gets
    /// in the way of a writer. The file is opened by each call that reads, which so sees the newest
    /// state and is the one to report a file that is damaged ([`Error::Open`], [`Error::Read`]) or
    /// of another version ([`Error::SchemaNewer`], [`Error::SchemaOlder`]). Calls that write answer
    /// [`Error::ReadOnly`].
    ///
    /// # Errors
    /// [`Error::Stat`] when it cannot be told whether there is one.
    pub fn open_existing(path: impl AsRef<Path>) -> Result<Option<Self>> {
        let path = path.as_ref().to_owned();
        Ok(Self::condition(&path)?.map(|_| Self { path, access: Access::Reading }))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes the connection and waits until the file is at rest: the log is folded into it, unless
    /// another process still has it open. Dropping a catalogue closes it too, a moment later.
    ///
    /// # Errors
    /// [`Error::Write`] when the last changes could not be folded in; they stay in the log.
    pub async fn close(self) -> Result<()> {
        match self.access {
            Access::Full(connection) => connection.close().await.map_err(|error| Error::Write {
                what: "log",
                path: self.path,
                source: error.into(),
            }),
            Access::Reading => Ok(()),
        }
    }

    /// Answers one question with one query (several would not see one state).
    pub(crate) async fn read(
        &self,
        what: &'static str,
        query: &SelectStatement,
    ) -> Result<Vec<QueryResult>> {
        match &self.access {
            Access::Full(connection) => {
                connection.query_all(query).await.map_err(|error| self.cannot_read(what, error))
            }
            Access::Reading => self.read_without_trace(what, query).await,
        }
    }

    /// Begins a writing transaction; dropping it undoes what was done in it.
    pub(crate) async fn begin_write(&self, what: &'static str) -> Result<DatabaseTransaction> {
        match &self.access {
            Access::Full(connection) => schema::begin_write(connection)
                .await
                .map_err(|error| self.cannot_write(what, error)),
            Access::Reading => Err(Error::ReadOnly { path: self.path.clone() }),
        }
    }

    pub(crate) fn cannot_write(&self, what: &'static str, error: DbErr) -> Error {
        Error::Write { what, path: self.path.clone(), source: error.into() }
    }

    pub(crate) fn cannot_read(&self, what: &'static str, error: DbErr) -> Error {
        Error::Read { what, path: self.path.clone(), source: error.into() }
    }

    async fn read_without_trace(
        &self,
        what: &'static str,
        query: &SelectStatement,
    ) -> Result<Vec<QueryResult>> {
        let mut before = self.condition_while_open()?;
        for _ in 0..UNDISTURBED_TRIES {
            let answer = self.read_as(&before, what, query).await;
            let after = self.condition_while_open()?;
            if after == before || (answer.is_ok() && before == Condition::Logged) {
                return answer;
            }
            before = after;
        }
        self.read_as(&Condition::Logged, what, query).await
    }

    async fn read_as(
        &self,
        condition: &Condition,
        what: &'static str,
        query: &SelectStatement,
    ) -> Result<Vec<QueryResult>> {
        let connection = connection::reading(&self.path, condition)
            .await
            .map_err(|error| Error::Open { path: self.path.clone(), source: error.into() })?;
        schema::require_current(&self.path, &connection).await?;
        let failed = |error| self.cannot_read(what, error);
        let rows = connection.query_all(query).await.map_err(failed)?;
        connection.close().await.map_err(failed)?;
        Ok(rows)
    }

    fn condition_while_open(&self) -> Result<Condition> {
        let missing =
            || Error::Stat { path: self.path.clone(), source: std::io::ErrorKind::NotFound.into() };
        Self::condition(&self.path)?.ok_or_else(missing)
    }

    fn condition(path: &Path) -> Result<Option<Condition>> {
        connection::condition(path).map_err(|source| Error::Stat { path: path.to_owned(), source })
    }
}
