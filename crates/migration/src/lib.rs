//! Schema steps of the catalogue, in the order in which they were released.
//!
//! A step only adds to what released steps built and is never edited afterwards; what the tables
//! mean is told in `docs/formats/catalogue.md`. This crate opens no file, takes no lock and begins
//! no transaction: `microsandbox-db` does, around [`Migrator`].

#![forbid(unsafe_code)]

mod step;

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::{MigrationTrait, async_trait};

/// The catalogue's steps; `Migrator::up` applies those that are missing.
#[derive(Debug)]
pub struct Migrator;

/// Number of steps this build knows: the schema version it reads and writes.
///
/// The database stores the number it has been brought to as `PRAGMA user_version`.
pub fn latest_version() -> u32 {
    u32::try_from(Migrator::migrations().len()).expect("steps are listed by hand, a few dozen")
}

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(step::m0001_sandboxes::STEP),
            Box::new(step::m0002_runs::STEP),
            Box::new(step::m0003_volumes_and_snapshots::STEP),
        ]
    }
}
