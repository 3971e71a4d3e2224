//! Named volumes and snapshots. Snapshots pin a manifest as sandboxes do.

use sea_orm_migration::prelude::*;

use super::{Change, Step};

/// Builds `volume` and `snapshot`.
pub(crate) const STEP: Step = Step {
    name: "m0003_volumes_and_snapshots",
    changes: || vec![Change::CreateTable(volume()), Change::CreateTable(snapshot())],
};

#[derive(DeriveIden)]
enum Volume {
    Table,
    Id,
    Name,
    ConfigJson,
    CreatedAtMs,
}

#[derive(DeriveIden)]
enum Snapshot {
    Table,
    Id,
    Name,
    ConfigJson,
    ManifestDigest,
    CreatedAtMs,
}

fn volume() -> TableCreateStatement {
    Table::create()
        .table(Volume::Table)
        .col(ColumnDef::new(Volume::Id).big_integer().not_null().auto_increment().primary_key())
        .col(ColumnDef::new(Volume::Name).text().not_null().unique_key())
        .col(ColumnDef::new(Volume::ConfigJson).text().not_null())
        .col(ColumnDef::new(Volume::CreatedAtMs).big_integer().not_null())
        .take()
}

fn snapshot() -> TableCreateStatement {
    Table::create()
        .table(Snapshot::Table)
        .col(ColumnDef::new(Snapshot::Id).big_integer().not_null().auto_increment().primary_key())
        .col(ColumnDef::new(Snapshot::Name).text().not_null().unique_key())
        .col(ColumnDef::new(Snapshot::ConfigJson).text().not_null())
        .col(ColumnDef::new(Snapshot::ManifestDigest).text())
        .col(ColumnDef::new(Snapshot::CreatedAtMs).big_integer().not_null())
        .take()
}
