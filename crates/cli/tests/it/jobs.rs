//! `msb exec -d` and `msb jobs`: jobs that outlive who started them.

use rustix::process::Signal;

use crate::home::Home;

#[test]
fn a_job_goes_on_without_msb_and_tells_its_output_and_code() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    let script = "echo out; echo err >&2; until [ -e /root/go ]; do usleep 20000; done; exit 7";
    home.check(&["exec", "-d", "box", "--", "sh", "-c", script], 0, "1\n", "");
    let listed = home.run(&["jobs", "ls", "box"]).stdout;
    let first: Vec<&str> = listed.lines().nth(1).unwrap().split_whitespace().take(2).collect();
    assert_eq!(first, ["1", "running"], "{listed}");
    let running = "msb: job 1 is still running\nhint: msb jobs kill NAME 1\n";
    home.check(&["jobs", "rm", "box", "1"], 125, "", running);
    // Whoever looks on may be killed.
    let mut attached = home.start(&["jobs", "attach", "box", "1"]);
    attached.expect("out\n");
    attached.signal(Signal::KILL);
    assert_eq!(attached.end().code, 137);
    let listed = home.run(&["jobs", "ls", "box"]).stdout;
    assert!(listed.lines().nth(1).is_some_and(|line| line.contains("running")), "{listed}");
    home.check(&["exec", "box", "--", "touch", "/root/go"], 0, "", "");
    home.check(&["jobs", "wait", "box", "1"], 7, "", "");
    home.check(&["jobs", "attach", "box", "1"], 7, "out\n", "err\n");
    home.check(&["jobs", "logs", "box", "1"], 0, "out\n", "err\n");
    home.check(&["exec", "-d", "box", "--", "sleep", "1000"], 0, "2\n", "");
    home.check(&["jobs", "kill", "-s", "15", "box", "2"], 0, "", "");
    home.check(&["jobs", "wait", "box", "2"], 143, "", "");
    home.check(&["jobs", "rm", "box", "1", "2"], 0, "1\n2\n", "");
    let gone = "msb: the sandbox has no job 1\nhint: `msb jobs ls NAME` shows those there are\n";
    home.check(&["jobs", "logs", "box", "1"], 125, "", gone);
}

#[test]
fn the_log_of_commands_has_neither_jobs_nor_files() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    home.check(&["exec", "-d", "box", "--", "echo", "of a job"], 0, "1\n", "");
    home.check(&["jobs", "wait", "box", "1"], 0, "", "");
    let file = home.path().join("file");
    std::fs::write(&file, "of a file\n").unwrap();
    home.check(&["cp", "-q", file.to_str().unwrap(), "box:/root/file"], 0, "", "");
    let back = home.path().join("back");
    home.check(&["cp", "-q", "box:/root/file", back.to_str().unwrap()], 0, "", "");
    home.check(&["exec", "box", "--", "echo", "of a command"], 0, "of a command\n", "");
    home.check(&["stop", "box"], 0, "box\n", "");
    home.check(&["logs", "box"], 0, "of a command\n", "");
}
