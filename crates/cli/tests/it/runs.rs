//! `msb run`: output, input, exit codes, and what a run leaves.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::home::Home;

#[test]
fn run_passes_on_output_and_exit_code_and_leaves_nothing() {
    let home = Home::with_busybox();
    let run = |script| ["run", "-q", "busybox", "--", "sh", "-c", script];
    home.check(&run("echo out; echo err >&2; exit 7"), 7, "out\n", "err\n");
    home.check(&run("kill -9 $$"), 137, "", "");
    home.check(&["run", "-q", "busybox", "echo", "-n", "dash"], 0, "dash", "");
    home.check(
        &["run", "-q", "busybox", "--", "missing"],
        127,
        "",
        "msb: missing: no such command in the guest\n",
    );
    home.check(
        &["run", "-q", "busybox", "--", "/etc/passwd"],
        126,
        "",
        "msb: /etc/passwd: permission denied\n",
    );
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn options_define_the_sandbox() {
    let home = Home::with_busybox();
    let script = "echo $GREETING $INHERITED; pwd; id -u; hostname; nproc; \
                  test $(awk '/MemTotal/ {print $2}' /proc/meminfo) -lt 262144 && echo small";
    let mut command = home.msb(&["run", "-q", "busybox", "-e", "GREETING=hi", "-e", "INHERITED"]);
    command.args(["-w", "/tmp", "-u", "guest", "--hostname", "box", "--cpus", "2"]);
    command.args(["--memory", "256M", "--", "sh", "-c", script]).env("INHERITED", "there");
    let ran = home.end(&mut command);
    assert_eq!(ran.stdout, "hi there\n/tmp\n1000\nbox\n2\nsmall\n", "{ran:?}");
}

#[test]
fn image_says_what_the_command_does_not() {
    let home = Home::with_guest();
    let layout = crate::home::layout("busybox-configured");
    let loaded = home.run(&["load", "-q", "-i", layout.to_str().unwrap(), "-t", "configured"]);
    assert_eq!(loaded.code, 0, "{loaded:?}");
    let said = "hello from the image from guest in /tmp\n";
    home.check(&["run", "-q", "configured"], 0, said, "");
    home.check(&["run", "-q", "configured", "--", "echo given"], 0, "given\n", "");
    home.check(&["run", "-q", "--entrypoint", "/bin/echo", "configured", "own"], 0, "own\n", "");
    let none = "msb: the image has no default command: give one, such as `-- sh -c 'echo hello'`\n";
    home.check(&["run", "-q", "--entrypoint", "", "configured"], 125, "", none);
}

#[test]
fn named_run_is_kept_and_stopped() {
    let home = Home::with_busybox();
    home.check(&["run", "-q", "--name", "kept", "busybox", "--", "touch", "/root/f"], 0, "", "");
    let listed = home.run(&["ls", "--format", "json"]).stdout;
    assert!(listed.contains(r#""status": "stopped""#), "{listed}");
    home.check(&["start", "-q", "kept"], 0, "kept\n", "");
    home.check(&["exec", "kept", "--", "ls", "/root"], 0, "f\n", "");
    home.check(&["rm", "-f", "kept"], 0, "kept\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn timings_are_one_line_of_json() {
    let home = Home::with_busybox();
    let ran = home.run(&["run", "-q", "--timings", "busybox", "--", "echo", "x"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "x\n"), "{ran:?}");
    let timings: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
    let time = |name: &str| timings[name].as_u64().unwrap_or_else(|| panic!("{name}: {timings}"));
    assert!(time("ready_us") <= time("first_output_us"), "{timings}");
    assert!(time("first_output_us") <= time("exited_us"), "{timings}");
    assert!(time("exited_us") <= time("total_us"), "{timings}");
    assert!(timings["boot"]["ready_us"].as_u64().unwrap() <= time("ready_us"), "{timings}");
}

#[test]
fn emulation_is_told_once_and_only_where_it_is_used() {
    let home = Home::with_busybox();
    let ran = home.run(&["run", "busybox", "--", "true"]);
    let findings = home.run(&["doctor", "--format", "json"]).stdout;
    let findings: serde_json::Value = serde_json::from_str(&findings).unwrap();
    let driver = findings.as_array().unwrap().iter().find(|finding| finding["name"] == "driver");
    let emulated = driver.unwrap()["detail"].as_str().unwrap().contains("software emulation");
    let told = "msb: no usable KVM: running in software emulation (slower); see `msb doctor`\n";
    assert_eq!(ran.stderr, if emulated { told } else { "" });
}

#[test]
fn state_is_for_its_owner_alone() {
    let home = Home::with_busybox();
    let fresh = home.path().join("fresh");
    let layout = crate::home::layout("busybox");
    let mut load = home.msb(&["load", "-q", "-t", "busybox", "-i", layout.to_str().unwrap()]);
    assert_eq!(home.end(load.env("MSB_HOME", &fresh)).code, 0);
    assert_eq!(fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn nothing_of_a_sandbox_is_in_arguments_or_environment_but_its_name() {
    let home = Home::with_busybox();
    let create =
        ["create", "-q", "--name", "a", "busybox", "-e", "TOKEN=hush", "--hostname", "hush"];
    home.check(&create, 0, "a\n", "");
    let processes = home.processes();
    assert!(processes.len() >= 2, "{processes:?}");
    for process in processes {
        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{file}", process.as_raw_nonzero());
            let text = fs::read(path).unwrap();
            let text = String::from_utf8_lossy(&text);
            assert!(!text.contains("hush"), "{file}: {text}");
        }
    }
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
}
