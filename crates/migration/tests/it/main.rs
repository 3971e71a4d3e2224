//! Every released schema, upgraded with data in it, becomes the schema of a new catalogue.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test they help")]

use std::path::Path;

use microsandbox_migration::{Migrator, latest_version};
use sea_orm_migration::prelude::*;
use sea_orm_migration::sea_orm::{
    ConnectOptions, Database, DatabaseConnection, DbBackend, Statement,
};

/// What a user of schema version `n` had stored, by the statements version `n` accepted.
const DATA: [&[&str]; 3] = [
    &[
        "INSERT INTO sandbox (id, name, config_json, ephemeral, manifest_digest, created_at_ms,
         updated_at_ms) VALUES (7, 'web', '{\"cpus\":2}', 0, 'sha256:aa', 1000, 2000)",
        "INSERT INTO sandbox_label VALUES (7, 'tier', 'front')",
    ],
    &["INSERT INTO run (sandbox_name, sandbox_id, started_at_ms, ended_at_ms, reason, exit_code,
       detail_json) VALUES ('web', 7, 1000, 1500, 'completed', 3, '{}')"],
    &[
        "INSERT INTO volume (name, config_json, created_at_ms) VALUES ('data', '{}', 1)",
        "INSERT INTO snapshot (name, config_json, manifest_digest, created_at_ms)
         VALUES ('warm', '{}', 'sha256:aa', 1)",
    ],
];

#[tokio::test]
async fn every_released_schema_upgrades_to_the_fresh_one_and_keeps_its_rows() {
    let home = tempfile::tempdir().unwrap();
    let fresh = connect(&home.path().join("fresh.db")).await;
    Migrator::up(&fresh, None).await.unwrap();
    let expected = schema(&fresh).await;
    assert!(expected.iter().any(|line| line.contains("CREATE TABLE \"sandbox\"")));

    for version in 0..=latest_version() {
        let old = connect(&home.path().join(format!("{version}.db"))).await;
        Migrator::up(&old, Some(version)).await.unwrap();
        for statement in DATA[..version as usize].iter().copied().flatten() {
            old.execute_unprepared(statement).await.unwrap();
        }
        let before = rows(&old).await;

        for round in ["first", "second"] {
            Migrator::up(&old, None).await.unwrap();
            assert_eq!(schema(&old).await, expected, "from {version}, {round} time");
            let after = rows(&old).await;
            for row in &before {
                assert!(after.contains(row), "from {version}, {round} time: lost {row}");
            }
        }
    }
}

#[tokio::test]
async fn removing_a_sandbox_takes_its_labels_and_leaves_its_runs() {
    let home = tempfile::tempdir().unwrap();
    let db = connect(&home.path().join("msb.db")).await;
    Migrator::up(&db, None).await.unwrap();
    for statement in DATA.iter().copied().flatten() {
        db.execute_unprepared(statement).await.unwrap();
    }

    db.execute_unprepared("DELETE FROM sandbox").await.unwrap();

    assert_eq!(column(&db, "SELECT count(*) || '' FROM sandbox_label").await, ["0"]);
    assert_eq!(
        column(&db, "SELECT sandbox_name || ' ' || coalesce(sandbox_id, '-') FROM run").await,
        ["web -"]
    );
}

async fn connect(path: &Path) -> DatabaseConnection {
    let url = format!("sqlite://{}?mode=rwc", path.display());
    Database::connect(ConnectOptions::new(url).sqlx_logging(false).to_owned()).await.unwrap()
}

/// The whole schema as SQLite keeps it, in the order of names.
async fn schema(db: &DatabaseConnection) -> Vec<String> {
    column(db, "SELECT name || ': ' || coalesce(sql, '') FROM sqlite_schema ORDER BY name").await
}

/// Every row of every table of ours, as text.
async fn rows(db: &DatabaseConnection) -> Vec<String> {
    let tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    let mut rows = Vec::new();
    for table in column(db, tables).await {
        let fields =
            format!("SELECT group_concat(quote(name), ', ') FROM pragma_table_info('{table}')");
        let fields = column(db, &fields).await.remove(0).replace('\'', "\"");
        let select = format!("SELECT json_array('{table}', {fields}) FROM \"{table}\"");
        rows.extend(column(db, &select).await);
    }
    rows
}

async fn column(db: &DatabaseConnection, query: &str) -> Vec<String> {
    db.query_all_raw(Statement::from_string(DbBackend::Sqlite, query))
        .await
        .unwrap()
        .iter()
        .map(|row| row.try_get_by_index(0).unwrap())
        .collect()
}
