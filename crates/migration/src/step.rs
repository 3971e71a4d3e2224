//! A schema step as data: a name the database remembers and the changes it makes, in order.
//!
//! One module per step, numbered. A step that has to move rows gets a further kind of [`Change`].

pub(crate) mod m0001_sandboxes;
pub(crate) mod m0002_runs;
pub(crate) mod m0003_volumes_and_snapshots;

use sea_orm_migration::prelude::*;

/// One released step.
pub(crate) struct Step {
    name: &'static str,
    changes: fn() -> Vec<Change>,
}

/// One statement of a step.
#[expect(clippy::large_enum_variant, reason = "a handful live, for the length of one upgrade")]
pub(crate) enum Change {
    CreateIndex(IndexCreateStatement),
    CreateTable(TableCreateStatement),
}

impl MigrationName for Step {
    fn name(&self) -> &str {
        self.name
    }
}

#[expect(
    elided_lifetimes_in_paths,
    reason = "the trait hides this lifetime, and `async_trait` matches only the same spelling"
)]
#[async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for change in (self.changes)() {
            match change {
                Change::CreateIndex(index) => manager.create_index(index).await?,
                Change::CreateTable(table) => manager.create_table(table).await?,
            }
        }
        Ok(())
    }
}
