//! Standard input: any length, never in the way of the end.

use bytes::Bytes;
use microsandbox_protocol::{
    Credit, Exec, ExecStarted, ExitStatus, Frame, Kill, Kind, MAX_BULK_LEN, Message, StdinClosed,
    StdinMode,
};

use crate::host::{Host, command, shell};

fn piped(exec: Exec) -> Exec {
    Exec { stdin: StdinMode::Pipe, ..exec }
}

#[test]
fn no_input_is_end_of_file() {
    let finished = Host::start().run(&command("cat", &[]));
    assert_eq!((finished.exited.status, &*finished.stdout), (ExitStatus::Code(0), ""));
}

#[test]
fn many_windows_of_input_come_back_whole() {
    let mut host = Host::start();
    let stream = host.request(&piped(command("cat", &[])));
    let mut credit = host.message::<ExecStarted>(stream).window as usize;
    let sent: Vec<u8> =
        (0..3u32 << 20).map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    let (mut rest, mut came) = (&sent[..], Vec::new());
    let mut ended = false;
    loop {
        let len = credit.min(rest.len()).min(MAX_BULK_LEN);
        if len > 0 {
            let bytes = Bytes::copy_from_slice(&rest[..len]);
            host.send(&Frame::bulk(stream, Kind::Stdin, bytes));
            (rest, credit) = (&rest[len..], credit - len);
            continue;
        }
        if rest.is_empty() && !ended {
            host.end_input(stream);
            ended = true;
        }
        let frame = host.frame();
        match Kind::from_byte(frame.kind).unwrap() {
            Kind::Credit => credit += Credit::from_frame(&frame).unwrap().bytes as usize,
            Kind::Stdout => {
                came.extend_from_slice(&frame.body);
                let bytes = u32::try_from(frame.body.len()).unwrap();
                host.send(&Credit { bytes }.to_frame(stream));
            }
            Kind::ExecExited => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(came == sent, "{} of {} bytes came back", came.len(), sent.len());
}

#[test]
fn input_that_is_never_read_or_ended_does_not_hold_up_the_end() {
    let mut host = Host::start();
    let stream = host.begin(&piped(command("true", &[])));
    assert_eq!(host.finish(stream).exited.status, ExitStatus::Code(0));
    // Its stream is over: what still comes is dropped.
    host.input(stream, b"too late");
    host.end_input(stream);
    assert_eq!(host.shell("echo next").stdout, "next\n");
}

#[test]
fn a_command_that_closes_its_input_is_told_once() {
    let mut host = Host::start();
    let stream = host.begin(&piped(shell("exec 0<&-; echo closed; exec sleep 1000")));
    host.expect_stdout(stream, "closed\n");
    host.input(stream, b"nobody reads this");
    assert_eq!(host.message::<StdinClosed>(stream).errno, 32);
    host.input(stream, b"nor this");
    host.send(&Kill {}.to_frame(stream));
    assert_eq!(host.shell("echo next").stdout, "next\n");
}

#[test]
fn more_input_than_granted_kills_the_command() {
    let mut host = Host::start();
    let stream = host.request(&piped(command("sleep", &["1000"])));
    let window = host.message::<ExecStarted>(stream).window as usize;
    let bytes = Bytes::from(vec![0; window + 1]);
    host.send(&Frame::bulk(stream, Kind::Stdin, bytes));
    assert_eq!(host.finish(stream).exited.status, ExitStatus::Signal(9));
}
