//! Commands on a terminal.

use microsandbox_protocol::{Exec, ExitStatus, Message, Resize, Signal, TerminalSize};

use crate::host::{Host, shell};

fn on_terminal(script: &str) -> Exec {
    let terminal = Some(TerminalSize { rows: 40, columns: 132 });
    Exec { terminal, ..shell(script) }
}

#[test]
fn a_terminal_has_its_size_and_is_the_controlling_one() {
    let mut host = Host::start();
    let finished = host.run(&on_terminal(
        "stty size; echo $TERM; echo err >&2; : > /dev/tty && test -t 0 && echo yes",
    ));
    assert_eq!(finished.stdout, "40 132\r\nxterm\r\nerr\r\nyes\r\n");
    assert_eq!(finished.stderr, "");
}

#[test]
fn a_resize_is_seen_by_the_command() {
    let mut host = Host::start();
    let stream = host.begin(&on_terminal("stty -echo; echo ready; read line; stty size"));
    host.expect_stdout(stream, "ready\r\n");
    let size = TerminalSize { rows: 10, columns: 20 };
    host.send(&Resize { size }.to_frame(stream));
    host.input(stream, b"go\n");
    assert_eq!(host.finish(stream).stdout, "10 20\r\n");
}

#[test]
fn typed_control_characters_do_what_they_do_on_a_terminal() {
    let mut host = Host::start();
    let stream = host.begin(&on_terminal("stty -echo; echo ready; exec cat"));
    host.expect_stdout(stream, "ready\r\n");
    host.input(stream, b"\x03");
    assert_eq!(host.finish(stream).exited.status, ExitStatus::Signal(2));

    let stream = host.begin(&on_terminal("stty -echo; echo ready; exec cat"));
    host.expect_stdout(stream, "ready\r\n");
    host.input(stream, b"typed\n");
    host.end_input(stream);
    let finished = host.finish(stream);
    assert_eq!((&*finished.stdout, finished.exited.status), ("typed\r\n", ExitStatus::Code(0)));
}

#[test]
fn a_signal_reaches_the_whole_process_group() {
    let mut host = Host::start();
    let stream = host.begin(&shell("trap 'echo parent; exit 3' USR1; sh -c 'trap \"echo child; exit\" USR1; echo ready; while :; do sleep 0.05; done'; exit 4"));
    host.expect_stdout(stream, "ready\n");
    host.send(&Signal { signal: 10 }.to_frame(stream));
    let finished = host.finish(stream);
    assert_eq!(finished.exited.status, ExitStatus::Code(3));
    assert_eq!(finished.stdout, "child\nparent\n");
}
