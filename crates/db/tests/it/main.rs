//! The catalogue on real files: what callers see, what is left on disk, many processes at once.

#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test they help")]

mod opening;
mod reading;
mod runs;
mod sandboxes;
mod writing;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use microsandbox_db::{Catalogue, NewSandbox};
use sea_orm::{ConnectionTrait, Database};
use tempfile::TempDir;

/// A home of one test, with the place of the catalogue in it.
struct Home {
    directory: TempDir,
}

impl Home {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn catalogue(&self) -> PathBuf {
        self.directory.path().join("home/db/msb.db")
    }

    async fn open(&self) -> Catalogue {
        Catalogue::open(self.catalogue()).await.unwrap()
    }

    fn open_existing(&self) -> Catalogue {
        Catalogue::open_existing(self.catalogue()).unwrap().expect("there is a catalogue")
    }
}

fn sandbox(name: &str, labels: &[(&str, &str)]) -> NewSandbox {
    let labels = labels.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    NewSandbox {
        name: name.to_owned(),
        config_json: format!("{{\"name\":\"{name}\"}}"),
        labels: labels.collect::<BTreeMap<_, _>>(),
        ..NewSandbox::default()
    }
}

/// Does to the file what another program, or another version of this one, could have done.
async fn execute(path: &Path, statement: &str) {
    let db = Database::connect(format!("sqlite://{}", path.display())).await.unwrap();
    db.execute_unprepared(statement).await.unwrap();
    db.close().await.unwrap();
}
