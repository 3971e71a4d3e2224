//! `msb doctor`: what it finds is what is there.

use serde_json::Value;

use crate::home::Home;

fn findings(text: &str) -> Vec<Value> {
    serde_json::from_str::<Value>(text).unwrap().as_array().unwrap().clone()
}

#[test]
fn a_machine_that_runs_sandboxes_passes_and_the_trial_leaves_nothing() {
    let home = Home::with_busybox();
    let before = home.run(&["image", "ls", "-q"]).stdout;
    let ran = home.run(&["doctor", "--boot", "--format", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.stdout);
    let findings = findings(&ran.stdout);
    for name in ["home", "memory", "supervisor", "kvm", "qemu", "guest kernel", "driver", "boot"] {
        let finding = findings.iter().find(|finding| finding["name"] == name);
        let finding = finding.unwrap_or_else(|| panic!("{name} is missing: {}", ran.stdout));
        assert_ne!(finding["verdict"], "fail", "{finding}");
        assert_eq!(finding["remedy"].is_null(), finding["verdict"] == "ok", "{finding}");
    }
    let boot = findings.iter().find(|finding| finding["name"] == "boot").unwrap();
    assert!(boot["detail"].as_str().unwrap().starts_with("Linux 6."), "{boot}");
    assert_eq!(home.run(&["image", "ls", "-q"]).stdout, before);
    assert_eq!(home.run(&["ls", "-a", "-q"]).stdout, "");
}

#[test]
fn a_guest_that_does_not_start_is_a_failed_finding_with_its_reason() {
    let home = Home::with_busybox();
    let broken = home.path().join("broken");
    std::fs::write(&broken, "no kernel").unwrap();
    let mut doctor = home.msb(&["doctor", "--boot", "--format", "json"]);
    doctor.env("MSB_KERNEL", &broken);
    let ran = home.end(&mut doctor);
    assert_eq!((ran.code, ran.stderr.as_str()), (1, ""));
    let findings = findings(&ran.stdout);
    let failed: Vec<&str> = findings
        .iter()
        .filter(|finding| finding["verdict"] == "fail")
        .filter_map(|finding| finding["name"].as_str())
        .collect();
    assert_eq!(failed, ["guest kernel", "boot"], "{}", ran.stdout);
    assert_eq!(home.run(&["ls", "-a", "-q"]).stdout, "");
}
