//! Ends that nobody planned: msb killed, interrupted, or its sandbox gone from under it.

use std::{
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Signal, kill_process};

use crate::{
    disk::SmallDisk,
    home::{Home, Running, wait_for_end},
};

/// Longest wait for a supervisor.
const DEADLINE: Duration = Duration::from_secs(60);

fn running(home: &Home, arguments: &[&str]) -> Running {
    let script = ["busybox", "--", "sh", "-c", "echo ready; sleep 1000"];
    let mut running = home.start(&[&["run", "-q"], arguments, &script].concat());
    running.expect("ready\n");
    running
}

#[test]
fn killed_run_takes_its_sandbox_with_it() {
    let home = Home::with_busybox();
    let msb = running(&home, &[]);
    let processes = home.processes();
    assert!(processes.len() >= 2, "supervisor and VMM: {processes:?}");
    msb.signal(Signal::KILL);
    assert_eq!(msb.end().code, 137);
    processes.into_iter().for_each(wait_for_end);
    assert_eq!(home.residue(), Vec::<String>::new());
    home.check(&["run", "-q", "busybox", "--", "echo", "next"], 0, "next\n", "");
}

#[test]
fn interrupted_run_leaves_nothing() {
    let home = Home::with_busybox();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let msb = running(&home, &[]);
        msb.signal(signal);
        let ran = msb.end();
        assert_eq!((ran.code, ran.stderr.as_str()), (code, ""));
        assert_eq!(home.residue(), Vec::<String>::new());
    }
}

/// Starts a sandbox, and waits until there is a supervisor.
fn booting(home: &Home, arguments: &[&str]) -> Running {
    let msb = home.start(arguments);
    let begun = Instant::now();
    while !home.processes().iter().any(|process| *process != msb.pid()) {
        assert!(begun.elapsed() < DEADLINE, "no supervisor is started");
        thread::yield_now();
    }
    msb
}

#[test]
fn boot_that_is_interrupted_is_undone() {
    let home = Home::with_busybox();
    for arguments in [
        &["create", "-q", "--name", "a", "busybox"][..],
        &["run", "-q", "--name", "a", "busybox", "--", "true"],
        &["run", "-q", "busybox", "--", "true"],
    ] {
        let msb = booting(&home, arguments);
        msb.signal(Signal::INT);
        let ran = msb.end();
        assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (130, "", ""));
        assert_eq!(home.residue(), Vec::<String>::new(), "{arguments:?}");
    }
}

#[test]
fn boot_whose_owner_is_killed_ends() {
    let home = Home::with_busybox();
    let msb = booting(&home, &["run", "-q", "busybox", "--", "true"]);
    msb.signal(Signal::KILL);
    assert_eq!(msb.end().code, 137);
    home.processes().into_iter().for_each(wait_for_end);
    // Before the supervisor had its orders, nobody was there to clear away: the next command does.
    home.check(&["run", "-q", "busybox", "--", "echo", "next"], 0, "next\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn creation_that_is_killed_is_cleared_away_by_the_next_command() {
    let home = Home::with_busybox();
    let msb = booting(&home, &["create", "-q", "--name", "a", "busybox"]);
    msb.signal(Signal::KILL);
    assert_eq!(msb.end().code, 137);
    home.processes().into_iter().for_each(wait_for_end);
    assert_eq!(home.run(&["ls", "-q"]).stdout, "");
    home.check(&["create", "-q", "--name", "a", "busybox"], 0, "a\n", "");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn killed_supervisor_is_told_and_the_sandbox_can_be_used_again() {
    let home = Home::with_busybox();
    let msb = running(&home, &["--name", "a"]);
    let processes = home.processes();
    for process in processes.iter().filter(|process| **process != msb.pid()) {
        // The second may have followed the first by itself.
        let _gone = kill_process(*process, Signal::KILL);
    }
    let ran = msb.end();
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.starts_with("msb: "), "{ran:?}");
    processes.into_iter().for_each(wait_for_end);
    let listed = home.run(&["ls", "--format", "json"]).stdout;
    assert!(listed.contains(r#""status": "crashed""#), "{listed}");
    home.check(&["start", "-q", "a"], 0, "a\n", "");
    home.check(&["exec", "a", "--", "echo", "again"], 0, "again\n", "");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn full_disk_of_the_host_is_told_and_loses_nothing_that_was_synced() {
    let home = Home::with_busybox();
    let disk = SmallDisk::mount(home.path().join("sandboxes"), "16M");
    home.check(&["create", "-q", "--name", "a", "busybox"], 0, "a\n", "");
    home.check(&["exec", "a", "--", "sh", "-c", "echo kept > /root/f; sync"], 0, "", "");
    let fill = "dd if=/dev/zero of=/root/x bs=1M count=40 2>/dev/null; sync; touch /root/y";
    let filled = home.run(&["exec", "a", "--", "sh", "-c", fill]);
    assert_ne!(filled.code, 0, "{filled:?}");
    home.check(&["stop", "a"], 0, "a\n", "");
    home.check(&["wait", "a"], 0, "stopped on request\n", "");
    let refused = home.run(&["start", "-q", "a"]);
    assert_eq!(refused.code, 125);
    assert!(refused.stderr.contains("the host's disk is full: "), "{refused:?}");
    assert!(refused.stderr.contains("\nhint: make room "), "{refused:?}");
    disk.resize("128M");
    home.check(&["start", "-q", "a"], 0, "a\n", "");
    home.check(&["exec", "a", "--", "cat", "/root/f"], 0, "kept\n", "");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn guest_that_ends_itself_is_told() {
    let home = Home::with_busybox();
    let script = "echo c > /proc/sysrq-trigger || poweroff -f; sleep 1000";
    let ran = home.run(&["run", "-q", "--name", "a", "busybox", "--", "sh", "-c", script]);
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(ran.stderr.contains("sandbox 'a' ended: "), "{ran:?}");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}
