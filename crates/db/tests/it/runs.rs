//! Runs are kept once each and outlive their sandbox.

use std::time::{Duration, SystemTime};

use microsandbox_db::{Run, SandboxId};

use crate::{Home, sandbox};

fn run(name: &str, id: Option<SandboxId>, started_ms: u64, reason: &str) -> Run {
    let started_at = SystemTime::UNIX_EPOCH + Duration::from_millis(started_ms);
    Run {
        sandbox_name: name.to_owned(),
        sandbox_id: id,
        started_at,
        ended_at: started_at + Duration::from_millis(250),
        reason: reason.to_owned(),
        exit_code: Some(7),
        exit_signal: None,
        detail_json: "{\"console\":\"tail\"}".to_owned(),
    }
}

#[tokio::test]
async fn runs_come_back_latest_first_and_only_those_of_the_name() {
    let home = Home::new();
    let catalogue = home.open().await;
    let id = Some(catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap().id);
    let [first, second] =
        [run("web", id, 1_790_000_000_001, "completed"), run("web", id, 1_790_000_000_999, "idle")];
    for run in [&second, &first, &run("other", None, 5, "completed")] {
        assert!(catalogue.record_run(run).await.unwrap());
    }

    assert_eq!(catalogue.runs("web").await.unwrap(), [second, first]);
    assert_eq!(catalogue.runs("never").await.unwrap(), []);
}

#[tokio::test]
async fn a_run_found_twice_is_kept_as_first_told() {
    let home = Home::new();
    let catalogue = home.open().await;
    let first = run("web", None, 1000, "completed");

    assert!(catalogue.record_run(&first).await.unwrap());
    assert!(!catalogue.record_run(&run("web", None, 1000, "vmm crashed")).await.unwrap());

    assert_eq!(catalogue.runs("web").await.unwrap(), [first]);
}

#[tokio::test]
async fn runs_outlive_their_sandbox_without_pointing_at_it() {
    let home = Home::new();
    let catalogue = home.open().await;
    let id = catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap().id;
    catalogue.record_run(&run("web", Some(id), 1000, "completed")).await.unwrap();

    catalogue.remove_sandbox(id).await.unwrap();
    catalogue.record_run(&run("web", Some(id), 2000, "completed")).await.unwrap();

    let runs = catalogue.runs("web").await.unwrap();
    assert_eq!(runs.iter().map(|run| run.sandbox_id).collect::<Vec<_>>(), [None, None]);
}
