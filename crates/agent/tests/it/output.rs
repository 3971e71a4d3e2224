//! Output: whole, in order, within credit, and no reason to wait for ever.

use std::time::{Duration, Instant};

use microsandbox_protocol::{
    Credit, Exec, ExecExited, ExitStatus, Kill, Kind, MAX_BULK_LEN, Message, Ping, Pong,
};

use crate::host::{Host, shell};

#[test]
fn all_output_written_before_the_end_arrives() {
    let mut host = Host::start();
    let exec = Exec { window: 1000, ..shell("seq 1 200000; seq 1 30000 >&2") };
    let finished = host.run(&exec);
    let numbers = |to: u32| (1..=to).map(|n| format!("{n}\n")).collect::<String>();
    assert!(finished.stdout == numbers(200_000), "{} bytes", finished.stdout.len());
    assert!(finished.stderr == numbers(30_000), "{} bytes", finished.stderr.len());
}

#[test]
fn a_client_that_does_not_read_stops_its_own_command_alone() {
    let mut host = Host::start();
    let window = 100_000;
    let greedy = host.begin(&Exec { window, ..shell("exec yes") });
    let mut came = 0;
    while came < window {
        let frame = host.frame();
        assert_eq!((frame.stream, frame.kind), (greedy, Kind::Stdout.byte()));
        assert!(frame.body.len() <= MAX_BULK_LEN);
        came += u32::try_from(frame.body.len()).unwrap();
    }
    assert_eq!(came, window);
    // The other commands go on, and nothing more comes from this one.
    for _ in 0..20 {
        assert_eq!(host.shell("echo fine").stdout, "fine\n");
    }
    host.send(&Credit { bytes: 500 }.to_frame(greedy));
    let mut more = 0;
    while more < 500 {
        let frame = host.frame();
        assert_eq!((frame.stream, frame.kind), (greedy, Kind::Stdout.byte()));
        more += frame.body.len();
    }
    assert_eq!(more, 500);
    host.send(&Kill {}.to_frame(greedy));
    host.send(&Ping { token: 9 }.to_frame(0));
    assert_eq!(host.message::<Pong>(0).token, 9);
}

#[test]
fn output_waits_for_credit_after_the_command_has_ended() {
    let mut host = Host::start();
    let stream = host.begin(&Exec { window: 0, ..shell("echo kept; echo for later >&2") });
    // Longer than any wait for stragglers: another command of that length.
    assert_eq!(host.shell("sleep 0.2; echo other").stdout, "other\n");
    host.send(&Credit { bytes: 1000 }.to_frame(stream));
    let finished = host.finish(stream);
    assert_eq!((&*finished.stdout, &*finished.stderr), ("kept\n", "for later\n"));
}

#[test]
fn a_background_process_that_keeps_the_pipe_does_not_hold_up_the_end() {
    let mut host = Host::start();
    let begun = Instant::now();
    let finished = host.shell("sleep 20 & echo hi");
    assert_eq!((&*finished.stdout, finished.exited.status), ("hi\n", ExitStatus::Code(0)));
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn a_background_process_that_never_stops_writing_does_not_hold_up_the_end() {
    let mut host = Host::start();
    let stream = host.begin(&shell("timeout 20 yes & echo hi"));
    let begun = Instant::now();
    let mut came = 0;
    loop {
        let frame = host.frame();
        if frame.kind == Kind::ExecExited.byte() {
            assert_eq!(ExecExited::from_frame(&frame).unwrap().status, ExitStatus::Code(0));
            break;
        }
        came += frame.body.len();
        let bytes = u32::try_from(frame.body.len()).unwrap();
        host.send(&Credit { bytes }.to_frame(stream));
    }
    assert!(came > 0);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn a_command_that_was_killed_is_forgotten() {
    let mut host = Host::start();
    let stream = host.begin(&shell("echo begun; exec sleep 1000"));
    host.expect_stdout(stream, "begun\n");
    host.send(&Kill {}.to_frame(stream));
    // Its number is free for another command, and nothing of the old one comes on it.
    host.send(&shell("echo new").to_frame(stream));
    host.message::<microsandbox_protocol::ExecStarted>(stream);
    assert_eq!(host.finish(stream).stdout, "new\n");
}
