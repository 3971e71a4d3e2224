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

    assert_eq!(catalogue.runs_of("web").await.unwrap(), [second, first]);
    assert_eq!(catalogue.runs_of("never").await.unwrap(), []);
}

#[tokio::test]
async fn a_run_found_twice_is_kept_as_first_told() {
    let home = Home::new();
    let catalogue = home.open().await;
    let first = run("web", None, 1000, "completed");

    assert!(catalogue.record_run(&first).await.unwrap());
    assert!(!catalogue.record_run(&run("web", None, 1000, "vmm crashed")).await.unwrap());

    assert_eq!(catalogue.runs_of("web").await.unwrap(), [first]);
}

#[tokio::test]
async fn runs_outlive_their_sandbox_without_pointing_at_it() {
    let home = Home::new();
    let catalogue = home.open().await;
    let id = catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap().id;
    catalogue.record_run(&run("web", Some(id), 1000, "completed")).await.unwrap();

    catalogue.remove_sandbox(id).await.unwrap();
    catalogue.record_run(&run("web", Some(id), 2000, "completed")).await.unwrap();

    let runs = catalogue.runs_of("web").await.unwrap();
    assert_eq!(runs.iter().map(|run| run.sandbox_id).collect::<Vec<_>>(), [None, None]);
}

#[tokio::test]
async fn a_home_remembers_its_latest_1000_runs() {
    let home = Home::new();
    let catalogue = home.open().await;
    for started_ms in 0..1003 {
        let name = if started_ms % 2 == 0 { "even" } else { "odd" };
        catalogue.record_run(&run(name, None, started_ms, "completed")).await.unwrap();
    }
    let runs = catalogue.runs().await.unwrap();
    let started = |run: &Run| run.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(runs.len(), 1000);
    assert_eq!(started(&runs[0]).as_millis(), 1002);
    assert_eq!(started(&runs[999]).as_millis(), 3);
}
