//! Sandboxes: what they were asked to be, as plain rows.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use sea_orm::sea_query::{Query, UnionType};
use sea_orm::{
    ColumnTrait, DbErr, EntityTrait, FromQueryResult, QueryFilter, QueryOrder, QueryResult,
    QuerySelect, QueryTrait, Select, Set, SqlErr,
};

use crate::catalogue::Catalogue;
use crate::entity::{sandbox, sandbox_label, snapshot};
use crate::error::{Error, Result};
use crate::timestamp::{from_ms, now_ms};

/// A sandbox's number. Names are used again after removal, numbers never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SandboxId(i64);

impl SandboxId {
    /// The id that was written down as `number`.
    pub const fn from_number(number: i64) -> Self {
        Self(number)
    }

    /// The number to write down.
    pub const fn number(self) -> i64 {
        self.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "id {}", self.0)
    }
}

/// A sandbox to put into the catalogue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSandbox {
    /// Unique among the sandboxes that exist.
    pub name: String,
    /// The definition as JSON; stored as it is, never looked into.
    pub config_json: String,
    /// Whether the sandbox is removed when its run ends.
    pub ephemeral: bool,
    /// Manifest (`sha256:<hex>`) that must stay in the image store while the sandbox exists.
    pub manifest_digest: Option<String>,
    /// Labels to filter by.
    pub labels: BTreeMap<String, String>,
}

/// A sandbox as the catalogue holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRow {
    /// Its number.
    pub id: SandboxId,
    /// Its name.
    pub name: String,
    /// The definition as JSON.
    pub config_json: String,
    /// Whether the sandbox is removed when its run ends.
    pub ephemeral: bool,
    /// Manifest the sandbox pins.
    pub manifest_digest: Option<String>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// When it was put into the catalogue, to the millisecond.
    pub created_at: SystemTime,
    /// When its row last changed, to the millisecond.
    pub updated_at: SystemTime,
}

/// Which sandboxes to list; the default is all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFilter {
    /// Keys and values a sandbox must have, all of them.
    pub labels: Vec<(String, String)>,
}

impl Catalogue {
    /// Puts a sandbox into the catalogue.
    ///
    /// # Errors
    /// [`Error::NameTaken`], [`Error::Write`].
    pub async fn insert_sandbox(&self, new: &NewSandbox) -> Result<SandboxRow> {
        let failed = |error: DbErr| match error.sql_err() {
            Some(SqlErr::UniqueConstraintViolation(_)) => {
                Error::NameTaken { name: new.name.clone() }
            }
            _ => self.cannot_write("sandbox", error),
        };
        let transaction = self.begin_write("sandbox").await?;
        let now = now_ms();
        let row = sandbox::ActiveModel {
            name: Set(new.name.clone()),
            config_json: Set(new.config_json.clone()),
            ephemeral: Set(new.ephemeral),
            manifest_digest: Set(new.manifest_digest.clone()),
            created_at_ms: Set(now),
            updated_at_ms: Set(now),
            ..sandbox::ActiveModel::default()
        };
        let row =
            sandbox::Entity::insert(row).exec_with_returning(&transaction).await.map_err(failed)?;
        let labels = new.labels.iter().map(|(key, value)| sandbox_label::ActiveModel {
            sandbox_id: Set(row.id),
            key: Set(key.clone()),
            value: Set(value.clone()),
        });
        if !new.labels.is_empty() {
            let labels = sandbox_label::Entity::insert_many(labels);
            labels.exec_without_returning(&transaction).await.map_err(failed)?;
        }
        transaction.commit().await.map_err(failed)?;
        Ok(SandboxRow::new(row, new.labels.clone()))
    }

    /// The sandbox of that name, if there is one.
    ///
    /// # Errors
    /// [`Error::Read`], and for a reader those that [`Catalogue::open_existing`] tells.
    pub async fn sandbox(&self, name: &str) -> Result<Option<SandboxRow>> {
        let query = sandbox::Entity::find().filter(sandbox::Column::Name.eq(name));
        Ok(self.read_sandboxes("sandbox", query).await?.into_iter().next())
    }

    /// The sandboxes that `filter` lets through, by name.
    ///
    /// # Errors
    /// [`Error::Read`], and for a reader those that [`Catalogue::open_existing`] tells.
    pub async fn sandboxes(&self, filter: &SandboxFilter) -> Result<Vec<SandboxRow>> {
        let mut query = sandbox::Entity::find().order_by_asc(sandbox::Column::Name);
        for (key, value) in &filter.labels {
            let labelled = sandbox_label::Entity::find()
                .select_only()
                .column(sandbox_label::Column::SandboxId)
                .filter(sandbox_label::Column::Key.eq(key))
                .filter(sandbox_label::Column::Value.eq(value))
                .into_query();
            query = query.filter(sandbox::Column::Id.in_subquery(labelled));
        }
        self.read_sandboxes("sandboxes", query).await
    }

    /// Replaces the definition of a sandbox.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::Write`].
    pub async fn update_sandbox_config(&self, id: SandboxId, config_json: &str) -> Result<()> {
        let changed = sandbox::ActiveModel {
            config_json: Set(config_json.to_owned()),
            updated_at_ms: Set(now_ms()),
            ..Default::default()
        };
        self.update_sandboxes(&[id], changed).await
    }

    async fn update_sandboxes(
        &self,
        ids: &[SandboxId],
        change: sandbox::ActiveModel,
    ) -> Result<()> {
        let failed = |error| self.cannot_write("sandbox", error);
        let transaction = self.begin_write("sandbox").await?;
        for &id in ids {
            let changed = sandbox::Entity::update_many()
                .set(change.clone())
                .filter(sandbox::Column::Id.eq(id.0))
                .exec(&transaction)
                .await
                .map_err(failed)?;
            if changed.rows_affected == 0 {
                return Err(Error::NoSuchSandbox { id });
            }
        }
        transaction.commit().await.map_err(failed)
    }

    /// Keeps sandboxes that were ephemeral: all of them, or none.
    ///
    /// # Errors
    /// [`Error::NoSuchSandbox`], [`Error::Write`].
    pub async fn keep_sandboxes(&self, ids: &[SandboxId]) -> Result<()> {
        let kept = sandbox::ActiveModel { ephemeral: Set(false), ..Default::default() };
        self.update_sandboxes(ids, kept).await
    }

    /// Takes a sandbox out of the catalogue, with its labels and its pin; its runs stay. Says
    /// whether it was there.
    ///
    /// By id, so that a name that has meanwhile gone to another sandbox is safe.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub async fn remove_sandbox(&self, id: SandboxId) -> Result<bool> {
        let failed = |error| self.cannot_write("sandbox", error);
        let transaction = self.begin_write("sandbox").await?;
        let removed =
            sandbox::Entity::delete_by_id(id.0).exec(&transaction).await.map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(removed.rows_affected > 0)
    }

    /// Digests of the manifests that a sandbox or a snapshot needs, sorted, each once.
    ///
    /// # Errors
    /// [`Error::Read`], and for a reader those that [`Catalogue::open_existing`] tells.
    pub async fn pinned_manifests(&self) -> Result<Vec<String>> {
        let snapshots = Query::select()
            .column(snapshot::Column::ManifestDigest)
            .from(snapshot::Entity)
            .and_where(snapshot::Column::ManifestDigest.is_not_null())
            .take();
        let pins = Query::select()
            .column(sandbox::Column::ManifestDigest)
            .from(sandbox::Entity)
            .and_where(sandbox::Column::ManifestDigest.is_not_null())
            .union(UnionType::Distinct, snapshots)
            .take();
        let rows = self.read("pinned manifests", &pins).await?;
        let mut pins: Vec<String> = rows
            .iter()
            .map(|row| row.try_get_by_index(0))
            .collect::<Result<_, _>>()
            .map_err(|error| self.cannot_read("pinned manifests", error))?;
        pins.sort_unstable();
        Ok(pins)
    }

    /// Sandboxes and labels in one query, so that both are of one state.
    async fn read_sandboxes(
        &self,
        what: &'static str,
        query: Select<sandbox::Entity>,
    ) -> Result<Vec<SandboxRow>> {
        let query = query.find_with_related(sandbox_label::Entity).into_query();
        let rows = self.read(what, &query).await?;
        fold_labels(&rows).map_err(|error| self.cannot_read(what, error))
    }
}

impl SandboxRow {
    fn new(row: sandbox::Model, labels: BTreeMap<String, String>) -> Self {
        Self {
            id: SandboxId(row.id),
            name: row.name,
            config_json: row.config_json,
            ephemeral: row.ephemeral,
            manifest_digest: row.manifest_digest,
            labels,
            created_at: from_ms(row.created_at_ms),
            updated_at: from_ms(row.updated_at_ms),
        }
    }
}

/// Makes one sandbox of the rows that differ in the label only; they follow each other.
fn fold_labels(rows: &[QueryResult]) -> Result<Vec<SandboxRow>, DbErr> {
    // The prefixes are those of sea-orm's two-entity selects.
    let mut sandboxes: Vec<SandboxRow> = Vec::new();
    for row in rows {
        let sandbox = sandbox::Model::from_query_result(row, "A_")?;
        let label = sandbox_label::Model::from_query_result_optional(row, "B_")?;
        if sandboxes.last().is_none_or(|last| last.id.0 != sandbox.id) {
            sandboxes.push(SandboxRow::new(sandbox, BTreeMap::new()));
        }
        if let (Some(last), Some(label)) = (sandboxes.last_mut(), label) {
            last.labels.insert(label.key, label.value);
        }
    }
    Ok(sandboxes)
}
