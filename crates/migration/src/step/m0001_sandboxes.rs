//! Sandboxes and their labels.

use sea_orm_migration::prelude::*;

use super::{Change, Step};

/// Builds `sandbox` and `sandbox_label`.
pub(crate) const STEP: Step = Step {
    name: "m0001_sandboxes",
    changes: || {
        vec![
            Change::CreateTable(sandbox()),
            Change::CreateTable(sandbox_label()),
            Change::CreateIndex(sandbox_label_by_value()),
        ]
    },
};

#[derive(DeriveIden)]
enum Sandbox {
    Table,
    Id,
    Name,
    ConfigJson,
    Ephemeral,
    ManifestDigest,
    CreatedAtMs,
    UpdatedAtMs,
}

#[derive(DeriveIden)]
enum SandboxLabel {
    Table,
    SandboxId,
    Key,
    Value,
}

/// Ids come from `AUTOINCREMENT`, so that the id of a removed sandbox never names another one.
fn sandbox() -> TableCreateStatement {
    Table::create()
        .table(Sandbox::Table)
        .col(ColumnDef::new(Sandbox::Id).big_integer().not_null().auto_increment().primary_key())
        .col(ColumnDef::new(Sandbox::Name).text().not_null().unique_key())
        .col(ColumnDef::new(Sandbox::ConfigJson).text().not_null())
        .col(ColumnDef::new(Sandbox::Ephemeral).boolean().not_null())
        .col(ColumnDef::new(Sandbox::ManifestDigest).text())
        .col(ColumnDef::new(Sandbox::CreatedAtMs).big_integer().not_null())
        .col(ColumnDef::new(Sandbox::UpdatedAtMs).big_integer().not_null())
        .take()
}

fn sandbox_label() -> TableCreateStatement {
    Table::create()
        .table(SandboxLabel::Table)
        .col(ColumnDef::new(SandboxLabel::SandboxId).big_integer().not_null())
        .col(ColumnDef::new(SandboxLabel::Key).text().not_null())
        .col(ColumnDef::new(SandboxLabel::Value).text().not_null())
        .primary_key(Index::create().col(SandboxLabel::SandboxId).col(SandboxLabel::Key))
        .foreign_key(
            ForeignKey::create()
                .from(SandboxLabel::Table, SandboxLabel::SandboxId)
                .to(Sandbox::Table, Sandbox::Id)
                .on_delete(ForeignKeyAction::Cascade),
        )
        .take()
}

/// Serves label filters, which ask for a key and a value and know no sandbox yet.
fn sandbox_label_by_value() -> IndexCreateStatement {
    Index::create()
        .name("sandbox_label_by_value")
        .table(SandboxLabel::Table)
        .col(SandboxLabel::Key)
        .col(SandboxLabel::Value)
        .take()
}
