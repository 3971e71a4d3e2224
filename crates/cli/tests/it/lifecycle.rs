//! Create, stop, start, remove, and what is told of sandboxes in between.

use serde_json::Value;

use crate::home::Home;

fn json(home: &Home, arguments: &[&str]) -> Value {
    let ran = home.run(arguments);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn disk_survives_stop_and_start_and_nothing_survives_removal() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "a", "busybox"], 0, "a\n", "");
    home.check(&["exec", "a", "--", "sh", "-c", "echo kept > /root/f"], 0, "", "");
    home.check(&["stop", "a"], 0, "a\n", "");
    let stopped = "msb: sandbox 'a' is not running (status: Stopped)\nhint: msb start a\n";
    home.check(&["exec", "a", "--", "true"], 125, "", stopped);
    home.check(&["start", "-q", "a"], 0, "a\n", "");
    home.check(&["exec", "a", "--", "cat", "/root/f"], 0, "kept\n", "");
    let running = "msb: sandbox 'a' is still running\nhint: msb stop a, or msb rm -f a\n";
    home.check(&["rm", "a"], 125, "", running);
    home.check(&["start", "-q", "a"], 125, "", running);
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    home.check(&["rm", "-f", "a"], 0, "", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn several_names_are_worked_off_in_turn() {
    let home = Home::with_busybox();
    for name in ["a", "b"] {
        home.check(&["create", "-q", "--name", name, "busybox"], 0, &format!("{name}\n"), "");
    }
    home.check(&["stop", "-t", "20", "a", "b"], 0, "a\nb\n", "");
    home.check(&["rm", "a", "b"], 0, "a\nb\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn sandboxes_are_chosen_by_name_by_label_or_all_and_worked_off_one_by_one() {
    let home = Home::with_busybox();
    for (name, label) in [("a", "team=x"), ("b", "team=x"), ("c", "team=y")] {
        let create = ["create", "-q", "--name", name, "--label", label, "busybox"];
        home.check(&create, 0, &format!("{name}\n"), "");
    }
    let missing = "msb: no sandbox is named 'no'\nhint: `msb ls` shows the sandboxes there are\n";
    home.check(&["stop", "no", "a"], 125, "a\n", missing);
    home.check(&["stop", "--label", "team=x"], 0, "b\n", "");
    home.check(&["restart", "-q", "b"], 0, "b\n", "");
    assert!(home.run(&["ping", "b"]).stdout.starts_with("b answered in "));
    home.check(&["stop", "--all"], 0, "b\nc\n", "");
    home.check(&["wait", "b"], 0, "stopped on request\n", "");
    home.check(&["prune", "--label", "team=y"], 0, "c\n", "");
    home.check(&["rm", "--all"], 0, "a\nb\n", "");
    assert_eq!(home.run(&["rm", "--all", "a"]).code, 125);
    assert_eq!(home.run(&["stop"]).code, 125);
    let history = json(&home, &["history", "--format", "json", "b"]);
    assert_eq!(history.as_array().unwrap().len(), 2);
    assert_eq!(history[0]["end"]["kind"], "stop_requested");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn what_is_told_of_a_sandbox_is_what_it_was_made_with() {
    let home = Home::with_busybox();
    assert_eq!(json(&home, &["ls", "--format", "json"]), Value::Array(Vec::new()));
    let mut create = vec!["create", "-q", "--name", "web", "busybox", "--label", "team=a"];
    create.extend(["-e", "A=1", "--memory", "256", "-w", "/tmp"]);
    home.check(&create, 0, "web\n", "");

    let listed = json(&home, &["ls", "--format", "json"]);
    assert_eq!(listed[0]["name"], "web");
    assert_eq!(listed[0]["status"], "running");
    assert_eq!(listed[0]["image"], "busybox");
    assert_eq!(listed[0]["memory_mib"], 256);
    assert_eq!(listed[0]["labels"]["team"], "a");
    home.check(&["ls", "-q", "--label", "team=a"], 0, "web\n", "");
    home.check(&["ls", "-q", "--label", "team=b"], 0, "", "");
    let table = home.run(&["ps"]).stdout;
    let head =
        "NAME  STATUS   IMAGE    CPUS  MEMORY   CREATED\nweb   running  busybox  1     256 MiB  ";
    assert!(table.starts_with(head), "{table}");

    let inspected = json(&home, &["inspect", "web"]);
    assert_eq!(inspected["config"]["workdir"], "/tmp");
    let env = inspected["config"]["env"].as_array().unwrap();
    assert!(env.contains(&Value::from("A=1")), "{env:?}");
    let digest = inspected["config"]["manifest_digest"].as_str().unwrap();
    assert!(digest.starts_with("sha256:"), "{digest}");
    let run = &inspected["last_run"];
    assert!(run["boot"]["ready_us"].as_u64() > run["boot"]["hello_us"].as_u64(), "{run}");
    assert_eq!(run["end"], Value::Null);
    let release = home.run(&["exec", "web", "--", "uname", "-r"]).stdout;
    assert_eq!(run["kernel_release"], release.trim());

    let metrics = json(&home, &["metrics", "--format", "json"]);
    assert_eq!(metrics[0]["name"], "web");
    assert_eq!(metrics[0]["commands"], 0);
    let text = home.run(&["metrics", "web", "--format", "prometheus"]).stdout;
    assert!(text.contains("\n# TYPE microsandbox_cpu_seconds_total counter\n"), "{text}");
    assert!(text.contains("\nmicrosandbox_memory_limit_bytes{sandbox=\"web\"} 2"), "{text}");

    let words = "echo first > /dev/console; echo second > /dev/console";
    home.check(&["exec", "-u", "root", "web", "--", "sh", "-c", words], 0, "", "");
    home.check(&["stop", "web"], 0, "web\n", "");
    let console = home.run(&["logs", "web", "--source", "kernel"]).stdout;
    assert!(console.contains("first\r\nsecond\r\n"), "{console:?}");
    let tail = home.run(&["logs", "web", "--source", "kernel", "--tail", "1"]).stdout;
    assert!(tail.lines().count() == 1 && console.ends_with(&tail), "{tail:?}");
    let end = &json(&home, &["inspect", "web"])["last_run"]["end"];
    assert_eq!(end["kind"], "stop_requested");
    assert_eq!(end["message"], "stopped on request");
    home.check(&["rm", "web"], 0, "web\n", "");
}

#[test]
fn reading_changes_nothing() {
    let home = Home::with_guest();
    let before = entries(&home);
    home.check(&["ls"], 0, "NAME  STATUS  IMAGE  CPUS  MEMORY  CREATED\n", "");
    home.check(&["image", "ls"], 0, "REFERENCE  DIGEST  PLATFORM  LAYERS  SIZE\n", "");
    assert_eq!(home.run(&["logs", "a"]).code, 125);
    assert_eq!(home.run(&["inspect", "a"]).code, 125);
    assert_eq!(entries(&home), before);
}

fn entries(home: &Home) -> Vec<String> {
    let entries = std::fs::read_dir(home.path()).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
