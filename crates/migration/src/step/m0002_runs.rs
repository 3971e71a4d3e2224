//! How runs ended: history that outlives the sandbox.

use sea_orm_migration::prelude::*;

use super::{Change, Step};

/// Builds `run`.
pub(crate) const STEP: Step = Step {
    name: "m0002_runs",
    changes: || vec![Change::CreateTable(run()), Change::CreateIndex(one_run_per_start())],
};

#[derive(DeriveIden)]
enum Run {
    Table,
    Id,
    SandboxName,
    SandboxId,
    StartedAtMs,
    EndedAtMs,
    Reason,
    ExitCode,
    ExitSignal,
    DetailJson,
}

#[derive(DeriveIden)]
enum Sandbox {
    Table,
    Id,
}

fn run() -> TableCreateStatement {
    Table::create()
        .table(Run::Table)
        .col(ColumnDef::new(Run::Id).big_integer().not_null().auto_increment().primary_key())
        .col(ColumnDef::new(Run::SandboxName).text().not_null())
        .col(ColumnDef::new(Run::SandboxId).big_integer())
        .col(ColumnDef::new(Run::StartedAtMs).big_integer().not_null())
        .col(ColumnDef::new(Run::EndedAtMs).big_integer().not_null())
        .col(ColumnDef::new(Run::Reason).text().not_null())
        .col(ColumnDef::new(Run::ExitCode).integer())
        .col(ColumnDef::new(Run::ExitSignal).integer())
        .col(ColumnDef::new(Run::DetailJson).text().not_null())
        .foreign_key(
            ForeignKey::create()
                .from(Run::Table, Run::SandboxId)
                .to(Sandbox::Table, Sandbox::Id)
                .on_delete(ForeignKeyAction::SetNull),
        )
        .take()
}

/// Several processes may find the same exit record; only the first to store it wins.
fn one_run_per_start() -> IndexCreateStatement {
    Index::create()
        .name("run_by_name_and_start")
        .table(Run::Table)
        .col(Run::SandboxName)
        .col(Run::StartedAtMs)
        .unique()
        .take()
}
