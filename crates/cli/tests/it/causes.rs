//! Causes of death, each brought about, and as the user is told of it.

use std::{fs, path::Path};

use microsandbox::env;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::home::{Home, Ran};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// What is told of the last end: `kind`, what `wait` says and its exit code.
#[track_caller]
fn check_end(home: &Home, name: &str, kind: &str, words: &str, code: i32) {
    let waited = home.run(&["wait", name]);
    assert!(waited.stdout.contains(words), "{waited:?}");
    assert_eq!(waited.code, code, "{waited:?}");
    let inspected = json(&home.run(&["inspect", name]).stdout);
    assert_eq!(inspected["last_run"]["end"]["kind"], kind, "{inspected}");
    assert_eq!(inspected["status"], "crashed");
    home.check(&["rm", name], 0, &format!("{name}\n"), "");
    let history = json(&home.run(&["history", name, "--format", "json"]).stdout);
    assert_eq!(history[0]["end"]["kind"], kind, "it is remembered after the removal");
}

/// Runs a command that does not outlive its sandbox.
#[track_caller]
fn dies(home: &Home, name: &str, script: &str, words: &str) {
    let ran = home.run(&["exec", name, "--", "sh", "-c", script]);
    assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{ran:?}");
    let line = format!("msb: sandbox '{name}' ended: {words}");
    assert!(ran.stderr.starts_with(&line), "{ran:?}");
}

fn create(home: &Home, name: &str, memory: &str) {
    let create = ["create", "-q", "--name", name, "--memory", memory, "busybox"];
    home.check(&create, 0, &format!("{name}\n"), "");
}

#[test]
fn guest_that_panics_or_has_no_memory_left_is_told_with_its_last_words() {
    let home = Home::with_busybox();
    create(&home, "a", "192");
    let panicked = "the guest kernel panicked: ";
    dies(&home, "a", "echo c > /proc/sysrq-trigger; sleep 1000", panicked);
    check_end(&home, "a", "kernel_panic", "sysrq triggered crash", 1);
    create(&home, "b", "192");
    let starved = "the guest ran out of memory: ";
    dies(&home, "b", "echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero", starved);
    check_end(&home, "b", "guest_out_of_memory", starved, 1);
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn vmm_that_crashes_or_is_killed_is_told_with_its_signal() {
    let home = Home::with_busybox();
    for (signal, number) in [(Signal::SEGV, 11), (Signal::KILL, 9)] {
        create(&home, "a", "192");
        let record = fs::read_to_string(home.path().join("sandboxes/a/run.json")).unwrap();
        let pid = json(&record)["vmm_pid"].as_i64().unwrap();
        let vmm = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let running = home.start(&["exec", "a", "--", "sleep", "1000"]);
        kill_process(vmm, signal).unwrap();
        let words = format!("the VMM was killed by signal {number}");
        // It may not have got as far as to the sandbox.
        assert_eq!(running.end().code, 125);
        check_end(&home, "a", "vmm_crashed", &words, 128 + number);
    }
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn supervisor_that_is_killed_is_told() {
    let home = Home::with_busybox();
    create(&home, "a", "192");
    let record = fs::read_to_string(home.path().join("sandboxes/a/run.json")).unwrap();
    let pid = json(&record)["pid"].as_i64().unwrap();
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), Signal::KILL).unwrap();
    check_end(&home, "a", "supervisor_killed", "its supervisor was killed", 1);
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn disk_that_is_full_in_the_guest_ends_nothing() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "a", "--disk", "64M", "busybox"], 0, "a\n", "");
    let fill = home.run(&["exec", "a", "--", "dd", "if=/dev/zero", "of=/root/big", "bs=1M"]);
    assert_eq!(fill.code, 1);
    assert!(fill.stderr.contains("No space left on device"), "{fill:?}");
    let copied = home.run(&["cp", env!("CARGO_BIN_EXE_msb"), "a:/root/msb"]);
    assert_eq!(copied.code, 125);
    assert!(copied.stderr.contains("No space left on device"), "{copied:?}");
    home.check(&["exec", "a", "--", "rm", "/root/big"], 0, "", "");
    home.check(&["exec", "a", "--", "sh", "-c", "echo ok > /root/f && cat /root/f"], 0, "ok\n", "");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
}

/// Starts with another kernel.
fn start_with_kernel(home: &Home, kernel: &Path) -> Ran {
    home.end(home.msb(&["--error-format", "json", "start", "-q", "a"]).env(env::MSB_KERNEL, kernel))
}

#[test]
fn boot_that_fails_tells_its_stage() {
    let home = Home::with_busybox();
    home.check(&["create", "--no-start", "--name", "a", "busybox"], 0, "a\n", "");
    let kernel = home.path().join("no-kernel");
    fs::write(&kernel, "not a kernel").unwrap();
    let ran = start_with_kernel(&home, &kernel);
    let told = &json(&ran.stderr)["error"];
    assert_eq!(
        (ran.code, &told["kind"], &told["stage"]),
        (125, &"boot_start".into(), &"vmm".into())
    );
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("the VMM exited with 1: ") && message.contains("kernel"), "{message}");
    assert!(told["hint"].as_str().unwrap().contains("msb doctor"), "{told}");

    fs::write(home.path().join("sandboxes/a/upper.ext4"), vec![0; 1 << 20]).unwrap();
    let ran = home.run(&["start", "-q", "a"]);
    assert_eq!(ran.code, 125);
    assert!(
        ran.stderr.contains("setting the guest up (MountUpper): /dev/vdb: Invalid argument"),
        "{ran:?}"
    );
    assert!(ran.stderr.contains("\nhint: ") && ran.stderr.contains("\nconsole: "), "{ran:?}");
    home.check(&["rm", "a"], 0, "a\n", "");
    let history = json(&home.run(&["history", "a", "--format", "json"]).stdout);
    assert_eq!(history[0]["end"]["kind"], "boot_failed");
    assert_eq!(history[0]["end"]["errno"], 22);
    assert_eq!(history[1]["end"]["kind"], "vmm_failed");
    assert_eq!(home.residue(), Vec::<String>::new());
}
