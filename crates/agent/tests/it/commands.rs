//! What a command is started with, how its end is told, and what is said when it cannot start.

use std::fs;

use microsandbox_protocol::{
    Exec, ExecDefaults, ExecFailure, ExitStatus, Program, Rlimit, RlimitResource,
};

use crate::host::{Finished, Host, command, shell};

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn both_outputs_and_the_end_are_told() {
    let mut host = Host::start();
    for (script, stdout, stderr, status) in [
        ("echo out; echo err >&2; exit 7", "out\n", "err\n", ExitStatus::Code(7)),
        ("printf 'no newline'", "no newline", "", ExitStatus::Code(0)),
        ("kill -9 $$", "", "", ExitStatus::Signal(9)),
        ("kill -TERM $$", "", "", ExitStatus::Signal(15)),
    ] {
        let finished = host.shell(script);
        assert_eq!(finished.exited.status, status, "{script}");
        assert_eq!((&*finished.stdout, &*finished.stderr), (stdout, stderr), "{script}");
        assert!(!finished.exited.timed_out, "{script}");
    }
}

#[test]
fn the_self_test_goes_the_way_of_a_command() {
    let mut host = Host::start();
    let exec = Exec { program: Program::SelfTest, ..command("", &[]) };
    let Finished { exited, stdout, stderr } = host.run(&exec);
    assert_eq!((exited.status, &*stdout, &*stderr), (ExitStatus::Code(0), "", ""));
}

#[test]
fn what_cannot_start_says_why() {
    let mut host = Host::start();
    let here = env!("CARGO_MANIFEST_DIR");
    let file = format!("{here}/Cargo.toml");
    let with = |change: fn(&mut Exec)| {
        let mut exec = command("true", &[]);
        change(&mut exec);
        exec
    };
    for (exec, failure, errno, object) in [
        (command("no-such-program", &[]), ExecFailure::NotFound, 2, "no-such-program"),
        (command("/no/such/program", &[]), ExecFailure::NotFound, 2, "/no/such/program"),
        (command(&file, &[]), ExecFailure::PermissionDenied, 13, &*file),
        (command(here, &[]), ExecFailure::PermissionDenied, 13, here),
        (command("", &[]), ExecFailure::BadArgs, 22, "program name"),
        (command("true", &["a\0b"]), ExecFailure::BadArgs, 22, "argument"),
        (with(|exec| exec.cwd = Some("/no/such".into())), ExecFailure::BadCwd, 2, "/no/such"),
        (
            with(|exec| exec.cwd = Some("/etc/passwd".into())),
            ExecFailure::BadCwd,
            20,
            "/etc/passwd",
        ),
        (
            with(|exec| exec.user = Some("nobody-here".into())),
            ExecFailure::BadUser,
            0,
            "nobody-here",
        ),
        (with(|exec| exec.user = Some("0:no-group".into())), ExecFailure::BadUser, 0, "0:no-group"),
        (with(|exec| exec.env = pairs(&[("", "x")])), ExecFailure::BadArgs, 22, "environment"),
        (with(|exec| exec.env = pairs(&[("A=B", "x")])), ExecFailure::BadArgs, 22, "environment"),
        (
            with(|exec| exec.rlimits = vec![limit(RlimitResource::Nofile, 2, 1)]),
            ExecFailure::ResourceLimit,
            22,
            "Nofile",
        ),
        (
            with(|exec| exec.rlimits = vec![limit(RlimitResource::Nofile, u64::MAX, u64::MAX)]),
            ExecFailure::ResourceLimit,
            1,
            "Nofile",
        ),
        (
            with(|exec| exec.rlimits = vec![limit(RlimitResource::Unknown, 1, 1)]),
            ExecFailure::ResourceLimit,
            22,
            "Unknown",
        ),
    ] {
        let failed = host.refused(&exec);
        assert_eq!((failed.failure, failed.errno, &*failed.object), (failure, errno, object));
    }
    assert_eq!(host.shell("echo fine").stdout, "fine\n");
}

#[test]
fn a_file_that_is_no_program_is_told_apart_from_one_that_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("script");
    fs::write(&path, "echo no interpreter is named\n").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let failed = Host::start().refused(&command(path.to_str().unwrap(), &[]));
    assert_eq!(failed.failure, ExecFailure::NotExecutable);
}

#[test]
fn programs_are_found_as_the_shell_finds_them() {
    let mut host = Host::start();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("greet");
    fs::write(&path, "#!/bin/sh\necho from $0\n").unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let there = directory.path().to_str().unwrap().to_owned();
    let search = |path: String| {
        let env = vec![("PATH".to_owned(), path)];
        Exec { env, cwd: Some(there.clone()), ..command("greet", &[]) }
    };
    for (path, expect) in [
        (format!("/nowhere:/etc/passwd:{there}:/bin"), format!("from {there}/greet\n")),
        ("/bin:".to_owned(), "from greet\n".to_owned()),
        ("/bin:.".to_owned(), "from ./greet\n".to_owned()),
    ] {
        assert_eq!(host.run(&search(path)).stdout, expect);
    }
    let relative = Exec { cwd: Some(there.clone()), ..command("./greet", &[]) };
    assert_eq!(host.run(&relative).stdout, "from ./greet\n");
    assert_eq!(host.refused(&search("/bin".to_owned())).failure, ExecFailure::NotFound);
}

#[test]
fn environment_is_the_sandboxes_then_the_commands_then_a_logins() {
    let mut host = Host::start_with(ExecDefaults {
        env: pairs(&[("A", "sandbox"), ("B", "sandbox"), ("B", "later"), ("HOME", "/given")]),
        cwd: Some("/usr".into()),
        user: None,
    });
    let exec = Exec { env: pairs(&[("A", "command"), ("C", "x=y")]), ..command("env", &[]) };
    let stdout = host.run(&exec).stdout;
    let lines: Vec<&str> = stdout.lines().collect();
    for expect in [
        "A=command",
        "B=later",
        "C=x=y",
        "HOME=/given",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "USER=root",
        "LOGNAME=root",
    ] {
        assert_eq!(lines.iter().filter(|line| **line == expect).count(), 1, "{expect}: {stdout}");
    }
    assert!(lines.iter().any(|line| line.starts_with("SHELL=/")), "{stdout}");
    assert!(!lines.iter().any(|line| line.starts_with("TERM=")), "{stdout}");
    assert_eq!(host.shell("pwd").stdout, "/usr\n");
    assert_eq!(host.run(&Exec { cwd: Some("/etc/..".into()), ..shell("pwd -P") }).stdout, "/\n");
}

#[test]
fn a_command_gets_three_descriptors_and_no_signal_of_the_agents() {
    let mut host = Host::start();
    let open = host.shell("for fd in $(seq 0 99); do [ -e /proc/$$/fd/$fd ] && echo $fd; done");
    assert_eq!(open.stdout, "0\n1\n2\n");
    let status = host.run(&command("cat", &["/proc/self/status"])).stdout;
    for set in ["SigBlk:\t", "SigIgn:\t"] {
        let line = status.lines().find_map(|line| line.strip_prefix(set)).unwrap();
        // The C library that starts the agent here keeps 32 and 33 to itself, ignored.
        let standard = u64::from_str_radix(line, 16).unwrap() & 0x7fff_ffff;
        assert_eq!(standard, 0, "{set}{line}");
    }
    // Its own session and process group, so that a signal reaches its children and nobody else.
    let ids = host.shell(
        "read pid name state parent group session rest < /proc/$$/stat
        echo $((pid - group)) $((pid - session))",
    );
    assert_eq!(ids.stdout, "0 0\n");
}

#[test]
fn limits_are_set_before_the_program_starts() {
    let mut host = Host::start();
    let rlimits = vec![limit(RlimitResource::Nofile, 123, 456), limit(RlimitResource::Core, 0, 0)];
    let exec = Exec { rlimits, ..shell("ulimit -Sn; ulimit -Hn; ulimit -c") };
    assert_eq!(host.run(&exec).stdout, "123\n456\n0\n");
}

#[test]
fn a_command_runs_as_the_user_it_names() {
    let mut host = Host::start();
    let exec = Exec {
        user: Some("4242:4343".into()),
        ..shell("id -u; id -g; id -G; echo $HOME ${USER-none}; echo again > /dev/stdout")
    };
    if is_root() {
        assert_eq!(host.run(&exec).stdout, "4242\n4343\n4343\n/ none\nagain\n");
    } else {
        assert_eq!(host.refused(&exec).failure, ExecFailure::BadUser);
    }
}

#[test]
fn what_was_used_is_told() {
    let finished = Host::start().shell("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done");
    let usage = finished.exited.usage;
    assert!(usage.user_us + usage.system_us > 0, "{usage:?}");
    assert!(usage.peak_memory_bytes > 100_000, "{usage:?}");
}

#[test]
fn a_timeout_kills_the_command_and_says_so() {
    let mut host = Host::start();
    let exec = Exec { timeout_ms: Some(100), ..shell("echo begun; sleep 1000; echo never") };
    let finished = host.run(&exec);
    assert_eq!(finished.exited.status, ExitStatus::Signal(9));
    assert!(finished.exited.timed_out);
    assert_eq!(finished.stdout, "begun\n");
    let exec = Exec { timeout_ms: Some(u64::MAX), ..shell("echo in time") };
    assert!(!host.run(&exec).exited.timed_out);
}

const fn limit(resource: RlimitResource, soft: u64, hard: u64) -> Rlimit {
    Rlimit { resource, soft, hard }
}
