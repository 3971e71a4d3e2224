//! Sandboxes go in, come out as they went in, and leave nothing behind.

use std::time::SystemTime;

use microsandbox_db::{Error, NewSandbox, SandboxFilter, SandboxId};

use crate::{Home, execute, sandbox};

#[tokio::test]
async fn a_sandbox_comes_back_as_it_was_put_in() {
    let home = Home::new();
    let catalogue = home.open().await;
    let before = SystemTime::now();
    let new = NewSandbox {
        name: "wéb 'quoted\" %?#".to_owned(),
        config_json: "{ \"kept\" :  \"byte for byte\" }".to_owned(),
        ephemeral: true,
        manifest_digest: Some("sha256:aa".to_owned()),
        ..sandbox("", &[("", ""), ("tier", "front"), ("ключ", "値")])
    };

    let inserted = catalogue.insert_sandbox(&new).await.unwrap();
    let found = catalogue.sandbox(&new.name).await.unwrap().unwrap();

    assert_eq!(found, inserted);
    assert_eq!(
        NewSandbox {
            name: found.name,
            config_json: found.config_json,
            ephemeral: found.ephemeral,
            manifest_digest: found.manifest_digest,
            labels: found.labels,
        },
        new
    );
    assert_eq!(found.created_at, found.updated_at);
    let age = before.duration_since(found.created_at).unwrap_or_default();
    assert!(age.as_millis() <= 1, "created {age:?} before the call");
    assert_eq!(catalogue.sandbox("other").await.unwrap(), None);
}

#[tokio::test]
async fn a_taken_name_is_refused_by_name_and_leaves_the_first_as_it_was() {
    let home = Home::new();
    let catalogue = home.open().await;
    let first = catalogue.insert_sandbox(&sandbox("web", &[("tier", "front")])).await.unwrap();

    let refused = catalogue.insert_sandbox(&sandbox("web", &[("tier", "back")])).await.unwrap_err();

    assert!(matches!(&refused, Error::NameTaken { name } if name == "web"), "{refused:?}");
    assert_eq!(refused.to_string(), "sandbox name \"web\" is taken");
    assert!(refused.hint().is_some());
    assert_eq!(catalogue.sandboxes(&SandboxFilter::default()).await.unwrap(), [first]);
}

#[tokio::test]
async fn sandboxes_are_filtered_by_all_labels_and_sorted_by_name() {
    let home = Home::new();
    let catalogue = home.open().await;
    for (name, labels) in [
        ("c", &[("tier", "front"), ("team", "red")][..]),
        ("a", &[("tier", "front"), ("team", "blue")]),
        ("b", &[("tier", "back"), ("team", "red")]),
        ("d", &[]),
    ] {
        catalogue.insert_sandbox(&sandbox(name, labels)).await.unwrap();
    }

    for (labels, expected) in [
        (&[][..], &["a", "b", "c", "d"][..]),
        (&[("tier", "front")], &["a", "c"]),
        (&[("tier", "front"), ("team", "red")], &["c"]),
        (&[("tier", "front"), ("tier", "back")], &[]),
        (&[("tier", "%")], &[]),
        (&[("front", "tier")], &[]),
    ] {
        let filter = SandboxFilter {
            labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        };
        let found = catalogue.sandboxes(&filter).await.unwrap();
        let names: Vec<_> = found.iter().map(|sandbox| sandbox.name.as_str()).collect();
        assert_eq!(names, expected, "{labels:?}");
        assert!(found.iter().all(|sandbox| sandbox.labels.len() != 1), "labels are complete");
    }
}

#[tokio::test]
async fn a_new_definition_replaces_the_old_and_an_unknown_sandbox_is_named() {
    let home = Home::new();
    let catalogue = home.open().await;
    let web = catalogue.insert_sandbox(&sandbox("web", &[("tier", "front")])).await.unwrap();
    let other = catalogue.insert_sandbox(&sandbox("other", &[])).await.unwrap();

    catalogue.update_sandbox_config(web.id, "{\"cpus\":4}").await.unwrap();

    let changed = catalogue.sandbox("web").await.unwrap().unwrap();
    assert_eq!(changed.config_json, "{\"cpus\":4}");
    assert_eq!((&changed.labels, changed.created_at), (&web.labels, web.created_at));
    assert!(changed.updated_at >= web.updated_at);
    assert_eq!(catalogue.sandbox("other").await.unwrap(), Some(other));

    let unknown = SandboxId::from_number(4711);
    let refused = catalogue.update_sandbox_config(unknown, "{}").await.unwrap_err();
    assert_eq!(refused.to_string(), "no sandbox with id 4711 in the catalogue");
}

#[tokio::test]
async fn an_ephemeral_sandbox_can_be_kept() {
    let home = Home::new();
    let catalogue = home.open().await;
    let new = NewSandbox { ephemeral: true, ..sandbox("web", &[]) };
    let web = catalogue.insert_sandbox(&new).await.unwrap();

    catalogue.keep_sandboxes(&[web.id]).await.unwrap();

    let kept = catalogue.sandbox("web").await.unwrap().unwrap();
    assert_eq!((kept.ephemeral, kept.config_json), (false, web.config_json));
}

#[tokio::test]
async fn removal_frees_the_name_but_never_the_id() {
    let home = Home::new();
    let catalogue = home.open().await;
    let first = catalogue.insert_sandbox(&sandbox("web", &[("tier", "front")])).await.unwrap();

    assert!(catalogue.remove_sandbox(first.id).await.unwrap());
    let second = catalogue.insert_sandbox(&sandbox("web", &[])).await.unwrap();

    assert_ne!(second.id, first.id);
    assert!(!catalogue.remove_sandbox(first.id).await.unwrap(), "it is gone already");
    assert_eq!(catalogue.sandbox("web").await.unwrap(), Some(second));
}

#[tokio::test]
async fn manifests_stay_pinned_while_a_sandbox_or_a_snapshot_needs_them() {
    let home = Home::new();
    let catalogue = home.open().await;
    let mut ids = Vec::new();
    for (name, digest) in [("a", Some("sha256:bb")), ("b", Some("sha256:bb")), ("c", None)] {
        let new = NewSandbox { manifest_digest: digest.map(str::to_owned), ..sandbox(name, &[]) };
        ids.push(catalogue.insert_sandbox(&new).await.unwrap().id);
    }
    let snapshot = "INSERT INTO snapshot (name, config_json, manifest_digest, created_at_ms)
                    VALUES ('warm', '{}', 'sha256:aa', 0), ('empty', '{}', NULL, 0)";
    execute(&home.catalogue(), snapshot).await;

    assert_eq!(catalogue.pinned_manifests().await.unwrap(), ["sha256:aa", "sha256:bb"]);
    catalogue.remove_sandbox(ids[0]).await.unwrap();
    assert_eq!(catalogue.pinned_manifests().await.unwrap(), ["sha256:aa", "sha256:bb"]);
    catalogue.remove_sandbox(ids[1]).await.unwrap();
    assert_eq!(catalogue.pinned_manifests().await.unwrap(), ["sha256:aa"]);
}
