//! `msb exec`: streams, input, codes, time, signals.

use std::process::Stdio;

use rustix::process::Signal;

use crate::home::{Home, Running};

/// A home with a sandbox named `box` that runs.
fn with_box() -> Home {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox", "-e", "FROM=sandbox"], 0, "box\n", "");
    home
}

/// Waits until no process of the sandbox looks like `pattern`.
#[track_caller]
fn none_is_left(home: &Home, pattern: &str) {
    // The end of msb reaches the guest a moment later; the guest waits for it.
    let wait = format!("while ps | grep -q '{pattern}'; do usleep 20000; done; echo gone");
    let exec = ["exec", "--timeout", "60s", "box", "--", "sh", "-c", &wait];
    home.check(&exec, 0, "gone\n", "");
}

#[test]
fn exec_is_a_command_line_in_the_sandbox() {
    let home = with_box();
    let exec = |arguments: &[&str], code, stdout: &str, stderr: &str| {
        home.check(&[&["exec", "box"], arguments].concat(), code, stdout, stderr);
    };
    exec(&["--", "sh", "-c", "echo $FROM; echo err >&2; exit 3"], 3, "sandbox\n", "err\n");
    exec(&["-e", "FROM=here", "--", "sh", "-c", "echo $FROM"], 0, "here\n", "");
    exec(&["-w", "/tmp", "-u", "guest", "--", "sh", "-c", "pwd; id -un"], 0, "/tmp\nguest\n", "");
    exec(&["--", "missing"], 127, "", "msb: missing: no such command in the guest\n");
    exec(&["--", "sh", "-c", "kill -TERM $$"], 143, "", "");
    let late = "msb: the command did not end within 500ms\n";
    exec(
        &["--timeout", "500ms", "--", "sh", "-c", "setsid sleep 1000 & sleep 1000"],
        124,
        "",
        late,
    );
    none_is_left(&home, "[s]leep 1000");
}

#[test]
fn output_comes_as_it_is_written_and_input_goes_the_same_way() {
    let home = with_box();
    let script = "printf ready; read line; echo \" $line\"; cat; printf '\\377' | wc -c";
    let mut running = home.start(&["exec", "-i", "box", "--", "sh", "-c", script]);
    running.expect("ready");
    running.write("first\n");
    running.expect(" first\n");
    running.write("rest");
    running.close_stdin();
    let ran = running.end();
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "rest1\n"), "{ran:?}");
}

#[test]
fn input_that_stays_open_keeps_nothing_from_ending() {
    let home = with_box();
    for arguments in [&["exec", "-i", "box", "--", "true"][..], &["exec", "box", "--", "cat"]] {
        let running = home.start(arguments);
        let ran = running.end();
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    }
    let mut background = home.msb(&["exec", "box", "--", "sh", "-c", "sleep 1000 & echo hi"]);
    assert_eq!(home.end(background.stdin(Stdio::null())).stdout, "hi\n");
}

#[test]
fn output_that_nobody_reads_ends_the_command_quietly() {
    let home = with_box();
    let mut running = home.start(&["exec", "box", "--", "yes"]);
    running.expect("y\n");
    assert_eq!(running.end_unread(), 141);
    none_is_left(&home, "[y]es");
}

#[test]
fn first_signal_goes_to_the_command_and_the_second_ends_msb() {
    let home = with_box();
    let started = |script: &str| -> Running {
        let mut running = home.start(&["exec", "box", "--", "sh", "-c", script]);
        running.expect("ready\n");
        running
    };
    let wait = "while true; do sleep 1000 & wait; done";
    let polite = started(&format!(
        "trap 'echo caught; kill $! 2>/dev/null; exit 9' INT; echo ready; {wait}"
    ));
    polite.signal(Signal::INT);
    let ran = polite.end();
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (9, "caught\n", ""));

    let plain = started("echo ready; sleep 1000");
    plain.signal(Signal::TERM);
    assert_eq!(plain.end().code, 143);

    let mut stubborn = started(&format!("trap 'echo no' INT; echo ready; {wait}"));
    stubborn.signal(Signal::INT);
    stubborn.expect("no\n");
    stubborn.signal(Signal::INT);
    assert_eq!(stubborn.end().code, 130);
    none_is_left(&home, "[s]leep 1000");
}
