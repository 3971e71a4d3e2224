//! Runs: how each ended, kept also when the sandbox is gone.

use std::time::SystemTime;

use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Query, SimpleExpr};
use sea_orm::{
    ColumnTrait, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QueryTrait, Select, Set,
};

use crate::catalogue::Catalogue;
use crate::entity::{run, sandbox};
use crate::error::Result;
use crate::sandbox::SandboxId;
use crate::timestamp::{from_ms, to_ms};

/// Runs that a home remembers: weeks of busy use, a few MiB.
const RUNS_KEPT: i64 = 1000;

/// A run that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Name the sandbox had.
    pub sandbox_name: String,
    /// The sandbox; `None` once it has been removed.
    pub sandbox_id: Option<SandboxId>,
    /// When the run began, to the millisecond.
    pub started_at: SystemTime,
    /// When it ended, to the millisecond.
    pub ended_at: SystemTime,
    /// Why it ended: the stable name of an exit reason.
    pub reason: String,
    /// Exit code, if the run ended by exiting.
    pub exit_code: Option<i32>,
    /// Signal, if the run ended by one.
    pub exit_signal: Option<i32>,
    /// The whole exit record as JSON; stored as it is, never looked into.
    pub detail_json: String,
}

impl Catalogue {
    /// Keeps how a run ended, and forgets runs beyond the latest 1000 of the home. Says whether that was news: the same run (same name, same start),
    /// found by several processes, is kept once, as the first of them told it.
    ///
    /// A sandbox that has been removed meanwhile is left out of the record.
    ///
    /// # Errors
    /// [`Error::Write`](crate::Error::Write).
    pub async fn record_run(&self, run: &Run) -> Result<bool> {
        let failed = |error| self.cannot_write("run", error);
        let transaction = self.begin_write("run").await?;
        let sandbox_id = match run.sandbox_id {
            None => None,
            Some(id) => sandbox::Entity::find_by_id(id.number())
                .one(&transaction)
                .await
                .map_err(failed)?
                .map(|sandbox| sandbox.id),
        };
        let row = run::ActiveModel {
            sandbox_name: Set(run.sandbox_name.clone()),
            sandbox_id: Set(sandbox_id),
            started_at_ms: Set(to_ms(run.started_at)),
            ended_at_ms: Set(to_ms(run.ended_at)),
            reason: Set(run.reason.clone()),
            exit_code: Set(run.exit_code),
            exit_signal: Set(run.exit_signal),
            detail_json: Set(run.detail_json.clone()),
            ..run::ActiveModel::default()
        };
        let same_run = OnConflict::columns([run::Column::SandboxName, run::Column::StartedAtMs]);
        let added = run::Entity::insert(row)
            .on_conflict(same_run.to_owned().do_nothing().to_owned())
            .exec_without_returning(&transaction)
            .await
            .map_err(failed)?;
        // Ids grow with time and are never used again: the oldest runs have the lowest.
        let latest = Query::select().expr(run::Column::Id.max()).from(run::Entity).take();
        let latest = SimpleExpr::SubQuery(None, Box::new(latest.into()));
        run::Entity::delete_many()
            .filter(Expr::col(run::Column::Id).lte(latest.sub(RUNS_KEPT)))
            .exec(&transaction)
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(added > 0)
    }

    /// The runs of sandboxes of that name, latest first, also of removed ones.
    ///
    /// # Errors
    /// [`Error::Read`](crate::Error::Read), and for a reader those that [`Catalogue::open_existing`] tells.
    pub async fn runs_of(&self, name: &str) -> Result<Vec<Run>> {
        self.read_runs(run::Entity::find().filter(run::Column::SandboxName.eq(name))).await
    }

    /// All runs that are kept, latest first.
    ///
    /// # Errors
    /// As [`Catalogue::runs_of`].
    pub async fn runs(&self) -> Result<Vec<Run>> {
        self.read_runs(run::Entity::find()).await
    }

    async fn read_runs(&self, query: Select<run::Entity>) -> Result<Vec<Run>> {
        let query = query.order_by_desc(run::Column::StartedAtMs).into_query();
        let rows = self.read("runs", &query).await?;
        let runs = rows.iter().map(|row| run::Model::from_query_result(row, "").map(Run::new));
        runs.collect::<Result<_, _>>().map_err(|error| self.cannot_read("runs", error))
    }
}

impl Run {
    fn new(row: run::Model) -> Self {
        Self {
            sandbox_name: row.sandbox_name,
            sandbox_id: row.sandbox_id.map(SandboxId::from_number),
            started_at: from_ms(row.started_at_ms),
            ended_at: from_ms(row.ended_at_ms),
            reason: row.reason,
            exit_code: row.exit_code,
            exit_signal: row.exit_signal,
            detail_json: row.detail_json,
        }
    }
}
