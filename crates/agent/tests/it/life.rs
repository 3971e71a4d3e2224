//! The link as a whole: what is not understood, the end, and a host that goes away.

use bytes::Bytes;
use microsandbox_protocol::{
    Become, Credit, Exec, ExecDefaults, ExecExited, ExecFailed, ExecFailure, ExecLimits,
    ExecStarted, ExitStatus, Frame, Held, Hello, Hold, JobCall, JobInfo, JobOperation, Jobs, Kill,
    Kind, Message, Ping, Pong, Ready, Rebirth, Release, Shutdown, StdinMode, Stopped, Timestamp,
    Unsupported,
};

use crate::host::{Host, command, shell};

#[test]
fn frames_that_make_no_sense_cost_nobody_anything() {
    let mut host = Host::start();
    let garbage = Bytes::from_static(&[0xff; 40]);
    host.send(&Frame { stream: 5, kind: 200, flags: 0, body: garbage.clone() });
    assert_eq!(host.message::<Unsupported>(5).kind, 200);
    host.send(&Frame { stream: 6, kind: Kind::Ready.byte(), flags: 0, body: garbage.clone() });
    assert_eq!(host.message::<Unsupported>(6).kind, Kind::Ready.byte());
    host.send(&Frame { stream: 7, kind: Kind::Exec.byte(), flags: 0, body: garbage.clone() });
    assert_eq!(host.message::<ExecFailed>(7).failure, ExecFailure::BadArgs);
    // Streams that are not there.
    host.send(&Credit { bytes: 1 }.to_frame(8));
    host.send(&Kill {}.to_frame(8));
    host.send(&Frame { stream: 8, kind: Kind::Stdin.byte(), flags: 1, body: garbage.clone() });
    host.send(&Frame { stream: 8, kind: Kind::Resize.byte(), flags: 0, body: garbage });
    host.send(&Ping { token: 3 }.to_frame(0));
    assert_eq!(host.message::<Pong>(0).token, 3);
}

#[test]
fn a_stream_in_use_keeps_its_command() {
    let mut host = Host::start();
    let stream = host.begin(&shell("echo first; exec sleep 1000"));
    host.expect_stdout(stream, "first\n");
    host.send(&shell("echo second").to_frame(stream));
    host.send(&Credit { bytes: 0 }.to_frame(stream));
    host.send(&Frame {
        body: Bytes::from_static(&[0xff; 11]),
        ..Credit { bytes: 0 }.to_frame(stream)
    });
    let finished = host.finish(stream);
    assert_eq!((finished.exited.status, &*finished.stdout), (ExitStatus::Signal(9), ""));
}

#[test]
fn shutdown_ends_commands_and_starts_no_more() {
    let mut host = Host::start();
    let polite = host.begin(&command("sleep", &["1000"]));
    let stubborn = host.begin(&shell("trap '' TERM; echo ready; sleep 1000"));
    host.expect_stdout(stubborn, "ready\n");
    host.send(&Shutdown { grace_ms: 200 }.to_frame(0));
    let late = host.request(&command("true", &[]));
    assert_eq!(host.message::<ExecFailed>(late).failure, ExecFailure::ShuttingDown);
    assert_eq!(host.message::<ExecExited>(polite).status, ExitStatus::Signal(15));
    assert_eq!(host.message::<ExecExited>(stubborn).status, ExitStatus::Signal(9));
    host.message::<Stopped>(0);
    assert!(host.next_frame().is_none());
    assert!(host.leave().success());
}

#[test]
fn a_host_that_goes_away_takes_everything_with_it() {
    let mut host = Host::start();
    let stream = host.begin(&shell("echo $$; exec sleep 1000"));
    let frame = host.frame();
    assert_eq!(frame.stream, stream);
    let pid: i32 = str::from_utf8(&frame.body).unwrap().trim().parse().unwrap();
    assert!(host.leave().success());
    // The agent has reaped it.
    let gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
    assert_eq!(gone, Err(nix::errno::Errno::ESRCH));
}

#[test]
fn before_bootstrap_pings_are_answered_and_hellos_repeated() {
    let mut host = Host::connect();
    assert_eq!(Hello::from_frame(&host.frame()), Ok(Hello::OURS));
    host.send(&Ping { token: 1 }.to_frame(0));
    assert_eq!(host.message::<Pong>(0).token, 1);
    for _ in 0..2 {
        host.send(&Hello::OURS.to_frame());
    }
    host.send(&command("true", &[]).to_frame(4));
    assert_eq!(host.message::<Unsupported>(4).kind, Kind::Exec.byte());
    host.send(&Shutdown { grace_ms: 0 }.to_frame(0));
    assert!(host.next_frame().is_none());
    assert!(host.leave().success());
}

#[test]
fn a_host_that_speaks_something_else_is_left() {
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 64]] {
        let mut host = Host::connect();
        host.frame();
        host.send_raw(bytes);
        assert!(host.next_frame().is_none());
        assert!(!host.leave().success());
    }
}

#[test]
fn held_agent_is_silent_until_it_may_go_on() {
    let mut host = Host::start();
    let reader = shell("echo before; read line; echo $line");
    let stream = host.begin(&Exec { stdin: StdinMode::Pipe, ..reader });
    host.expect_stdout(stream, "before\n");
    host.send(&Hold {}.to_frame(0));
    host.message::<Held>(0);
    // Both are taken, neither is answered: the first frame after the release answers the first.
    host.send(&Ping { token: 1 }.to_frame(0));
    host.send(&Frame::bulk(stream, Kind::Stdin, Bytes::from_static(b"after\n")));
    host.send(&Release {}.to_frame(0));
    assert_eq!(host.message::<Pong>(0).token, 1);
    host.expect_stdout(stream, "after\n");
}

#[test]
fn reborn_agent_has_forgotten_its_clients_and_kept_its_jobs() {
    let mut host = Host::start();
    let killed = host.begin(&shell("echo here; exec sleep 1000"));
    host.expect_stdout(killed, "here\n");
    let operation =
        JobOperation::Start { exec: shell("exec sleep 1000"), limits: ExecLimits::default() };
    host.send(&JobCall { window: 0, operation }.to_frame(900));
    let job = host.message::<JobInfo>(900);
    host.send(&Hold {}.to_frame(0));
    host.message::<Held>(0);
    // The frame that comes is of the past.
    host.send(&Ping { token: 1 }.to_frame(0));
    let wall_clock = Timestamp { seconds: 0, nanoseconds: 0 };
    host.send(&Rebirth { wall_clock, entropy: vec![0; 32], hostname: None }.to_frame(0));
    host.message::<Ready>(0);
    // The stream is free again.
    host.send(&command("true", &[]).to_frame(killed));
    host.message::<ExecStarted>(killed);
    assert_eq!(host.message::<ExecExited>(killed).status, ExitStatus::Code(0));
    host.send(&JobCall { window: 0, operation: JobOperation::List }.to_frame(901));
    let jobs = host.message::<Jobs>(901).jobs;
    assert_eq!(jobs.iter().map(|job| (job.id, job.ended)).collect::<Vec<_>>(), [(job.id, None)]);
}

#[test]
fn agent_that_has_served_nobody_becomes_a_sandbox_with_defaults_of_its_own() {
    let mut host = Host::start();
    host.send(&Hold {}.to_frame(0));
    host.message::<Held>(0);
    let defaults =
        ExecDefaults { env: vec![("WHO".into(), "me".into())], ..ExecDefaults::default() };
    let wall_clock = Timestamp { seconds: 0, nanoseconds: 0 };
    let hostname = "box".into();
    host.send(&Become { wall_clock, entropy: vec![0; 32], hostname, defaults }.to_frame(0));
    host.message::<Ready>(0);
    assert_eq!(host.shell("echo $WHO").stdout, "me\n");
}

#[test]
fn a_newer_host_that_still_speaks_ours_is_served() {
    let newer = Hello { oldest: 1, newest: 2, capabilities: u64::MAX };
    let mut host = Host::start_as(newer, ExecDefaults::default());
    assert_eq!(host.shell("echo fine").stdout, "fine\n");
    // What it has learnt since is refused by name and costs nothing.
    for kind in [31, 127, 255] {
        host.send(&Frame { stream: 9, kind, flags: 0, body: Bytes::from_static(b"new") });
        assert_eq!(host.message::<Unsupported>(9).kind, kind);
    }
    let mut operation = JobCall { window: 1, operation: JobOperation::List }.to_frame(9);
    operation.body = Bytes::from_static(&[1, 100]);
    host.send(&operation);
    assert_eq!(host.message::<Unsupported>(9).kind, Kind::JobCall.byte());
    assert_eq!(host.shell("echo fine").stdout, "fine\n");
}

#[test]
fn a_host_that_speaks_no_generation_of_ours_is_left() {
    for (oldest, newest) in [(2, 3), (0, 0)] {
        let mut host = Host::connect();
        host.frame();
        host.send(&Hello { oldest, newest, capabilities: 0 }.to_frame());
        assert!(host.next_frame().is_none());
        assert!(!host.leave().success());
    }
}
