//! Golden bytes of generation 1: one whole frame for every kind, written once, read for ever.
//!
//! A test that fails here says that the wire has changed. Bytes of a released generation are never
//! edited: a changed body is a new kind with bytes of its own.

use std::fmt::Debug;

use bytes::Bytes;
use microsandbox_protocol::{
    Become, BootFailed, BootStage, BootTimings, Bootstrap, Concluded, Credit, Detach, Disk, Drain,
    Ended, Exec, ExecDefaults, ExecExited, ExecFailed, ExecFailure, ExecLimits, ExecStarted,
    ExitStatus, FileAttributes, FileCall, FileEntry, FileFailed, FileFailure, FileKind,
    FileMetadata, FileOperation, Frame, FrameDecoder, Held, Hello, Hold, JobAttached, JobCall,
    JobDetail, JobDetails, JobEnd, JobGap, JobInfo, JobOperation, JobUnknown, Jobs, Kill, Kind,
    LimitedExec, Message, Metrics, MetricsCall, Outcome, PathBytes, Pause, Ping, Pong, Program,
    Ready, Rebirth, Release, Resize, Resume, Rlimit, RlimitResource, Root, Save, SetClock,
    Shutdown, Signal, StdinClosed, StdinMode, Stop, Stopped, TerminalSize, Timestamp, Unsupported,
    Upper, Usage, Welcome, WriteMode, to_record,
};

/// Every kind with the frames that show its body: hexadecimal digits, blanks only for reading.
const GOLDEN: &[(Kind, &[&str])] = &[
    (
        Kind::Hello,
        &["1a000000 00000000 01 00 \
             6d73626167656e74010002000201000000000000"],
    ),
    (
        Kind::Bootstrap,
        &[
            "51000000 00000000 02 00 \
             80c49fd50cff93ebdc0320000102030405060708090a0b0c0d0e0f101112131415161718191a \
             1b1c1d1e1f03626f78000001020141013101420001042f73727601086170703a3130303001",
            "19000000 00000000 02 00 \
             010003ffffff016d0201808080800400000000",
        ],
    ),
    (
        Kind::Ready,
        &["25000000 00000000 03 00 \
             05302e312e3007362e31322e3537017f8001e0a712ffffffffffffffffff01"],
    ),
    (
        Kind::BootFailed,
        &["11000000 00000000 04 00 \
             052c082f6465762f766462"],
    ),
    (
        Kind::Shutdown,
        &["08000000 00000000 05 00 \
             904e"],
    ),
    (Kind::Stopped, &["06000000 00000000 06 00"]),
    (
        Kind::Ping,
        &["07000000 00000000 07 00 \
             07"],
    ),
    (
        Kind::Pong,
        &["10000000 00000000 08 00 \
             ffffffffffffffffff01"],
    ),
    (
        Kind::Unsupported,
        &["07000000 09000000 09 00 \
             c8"],
    ),
    (
        Kind::Rebirth,
        &[
            "36000000 00000000 0a 00 \
             80c49fd50cff93ebdc0320000102030405060708090a0b0c0d0e0f101112131415161718191a \
             1b1c1d1e1f0103626f78",
            "0a000000 00000000 0a 00 \
             00000000",
        ],
    ),
    (Kind::Hold, &["06000000 00000000 0d 00"]),
    (Kind::Held, &["06000000 00000000 0e 00"]),
    (Kind::Release, &["06000000 00000000 0f 00"]),
    (
        Kind::Exec,
        &[
            "3e000000 02010000 10 00 \
             0002736802022d630665786974203701014b017601042f746d700104726f6f74010118500107 \
             8008ffffffffffffffffff0101d00f808020",
            "10000000 01000000 10 00 \
             01000000000000000000",
        ],
    ),
    (
        Kind::ExecStarted,
        &["0b000000 01000000 11 00 \
             ac02808020"],
    ),
    (
        Kind::ExecFailed,
        &["0d000000 01000000 12 00 \
             0104046e6f7065"],
    ),
    (
        Kind::ExecExited,
        &[
            "11000000 01000000 13 00 \
             00070000dc0bfa01808040",
            "11000000 01000000 13 00 \
             01090101dc0bfa01808040",
        ],
    ),
    (
        Kind::Signal,
        &["07000000 01000000 14 00 \
             1e"],
    ),
    (
        Kind::Resize,
        &["09000000 01000000 15 00 \
             32ac02"],
    ),
    (
        Kind::Credit,
        &["09000000 01000000 16 00 \
             808004"],
    ),
    (
        Kind::StdinClosed,
        &["07000000 01000000 17 00 \
             40"],
    ),
    (Kind::Kill, &["06000000 01000000 18 00"]),
    (
        Kind::LimitedExec,
        &[
            "1a000000 01000000 19 00 \
             01000000000000000000 01 80808020 01 f403 01 40",
            "13000000 01000000 19 00 \
             01000000000000000000 000000",
        ],
    ),
    (Kind::Detach, &["06000000 01000000 1a 00"]),
    (
        Kind::JobAttached,
        &["0c000000 01000000 1b 00 \
             ac02 808020 01"],
    ),
    (
        Kind::JobDetails,
        &[
            "2b000000 01000000 1c 00 \
             01 010205736c6565700139ac0280c49fd50c05000000 \
             01808080200000 dc0bfa01808040 01",
            "07000000 01000000 1c 00 \
             00",
        ],
    ),
    (
        Kind::Stdin,
        &[
            "09000000 01000000 20 00 \
             68690a",
            "06000000 01000000 20 01",
        ],
    ),
    (
        Kind::Stdout,
        &["09000000 02010000 21 00 \
             68690a"],
    ),
    (
        Kind::Stderr,
        &["09000000 04030201 22 00 \
             68690a"],
    ),
    (
        Kind::Welcome,
        &["2b000000 00000000 30 00 \
             80804080804005302e312e3007362e31322e3537017f8001e0a712ffffffffffffffffff01"],
    ),
    (
        Kind::Stop,
        &["08000000 00000000 31 00 \
             904e"],
    ),
    (
        Kind::Ended,
        &["09000000 00000000 32 00 \
             027b7d"],
    ),
    (Kind::Drain, &["06000000 00000000 33 00"]),
    (Kind::Pause, &["06000000 01000000 34 00"]),
    (Kind::Resume, &["06000000 01000000 35 00"]),
    (Kind::Save, &["0b000000 01000000 36 00 04732d3161"]),
    (
        Kind::Concluded,
        &[
            "07000000 01000000 37 00 00",
            "0c000000 01000000 37 00 01046c617465",
            "0f000000 01000000 37 00 02076c69626b72756e",
            "09000000 01000000 37 00 03ac02",
            "0c000000 01000000 37 00 04046c617465",
        ],
    ),
    (
        Kind::FileCall,
        &[
            "10000000 01000000 40 00 \
             80802000042f65746301",
            "0c000000 01000000 40 00 \
             80802001012f",
            "11000000 01000000 40 00 \
             80802002022fff0701ac02",
            "10000000 01000000 40 00 \
             80802003016600018003",
            "0e000000 01000000 40 00 \
             8080200301660200",
            "0f000000 01000000 40 00 \
             80802004016401ed03",
            "0c000000 01000000 40 00 \
             808020050166",
            "0d000000 01000000 40 00 \
             80802006016400",
            "0e000000 01000000 40 00 \
             8080200701610162",
            "0e000000 01000000 40 00 \
             8080200801610162",
            "0e000000 01000000 40 00 \
             808020090174016c",
            "0c000000 01000000 40 00 \
             8080200a016c",
            "1c000000 01000000 40 00 \
             8080200b01660001ed13010101020103010105010c07",
            "14000000 01000000 40 00 \
             8080200c042f7372760373727600",
            "12000000 01000000 40 00 \
             8080200d012f010373727601",
        ],
    ),
    (
        Kind::JobCall,
        &[
            "4c000000 01000000 48 00 \
             808020000002736802022d630665786974203701014b017601042f746d700104726f6f7401011 \
             85001078008ffffffffffffffffff0101d00f808020 \
             018080802001f4030140",
            "0a000000 01000000 48 00 \
             80802001",
            "0e000000 01000000 48 00 \
             80802002ac020100",
            "0b000000 01000000 48 00 \
             8080200301",
            "0c000000 01000000 48 00 \
             80802004011e",
            "0b000000 01000000 48 00 \
             8080200501",
            "0b000000 01000000 48 00 \
             8080200601",
            "0f000000 01000000 48 00 \
             80802007010132ac02",
            "0b000000 01000000 48 00 \
             8080200800",
            "4c000000 01000000 48 00 \
             808020090002736802022d630665786974203701014b017601042f746d700104726f6f7401011 \
             85001078008ffffffffffffffffff0101d00f808020 \
             018080802001f4030140",
        ],
    ),
    (
        Kind::JobInfo,
        &[
            "1b000000 01000000 49 00 \
             010205736c6565700139ac0280c49fd50c05000000",
            "25000000 01000000 49 00 \
             02010474727565ad02020201060400070000dc0bfa0180804080897a80893a",
        ],
    ),
    (
        Kind::Jobs,
        &[
            "3b000000 01000000 4a 00 \
             02010205736c6565700139ac0280c49fd50c0500000002010474727565ad02020201060400070 \
             000dc0bfa0180804080897a80893a",
            "07000000 01000000 4a 00 \
             00",
        ],
    ),
    (
        Kind::JobGap,
        &["09000000 01000000 4b 00 \
             f0a204"],
    ),
    (
        Kind::JobUnknown,
        &["08000000 01000000 4c 00 \
             ac02"],
    ),
    (Kind::MetricsCall, &["06000000 01000000 50 00"]),
    (
        Kind::Metrics,
        &["12000000 01000000 51 00 \
             ac0201020304050607ac0209"],
    ),
    (
        Kind::SetClock,
        &["0c000000 00000000 52 00 \
             80c49fd50c05"],
    ),
    (
        Kind::Become,
        &["41000000 00000000 53 00 \
             80c49fd50c0520000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e \
             1f03626f78010141013101042f7372760103617070"],
    ),
];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ascii"), 16);
    digits.chunks(2).map(|pair| byte(pair).expect("hexadecimal digits")).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The golden frame `index` of `kind`.
fn golden(kind: Kind, index: usize) -> (Vec<u8>, Frame) {
    let known = GOLDEN.iter().find(|(known, _)| *known == kind);
    let frames = known.map(|(_, frames)| *frames).unwrap_or_default();
    let bytes = unhex(frames.get(index).copied().unwrap_or_default());
    let mut decoder = FrameDecoder::default();
    decoder.buffer().extend_from_slice(&bytes);
    let frame = decoder.next_frame().expect("a legal length").expect("a whole frame");
    assert!(decoder.is_empty(), "{kind:?}: one frame each");
    assert_eq!(frame.kind, kind.byte());
    (bytes, frame)
}

fn encode(frame: &Frame) -> String {
    hex(&[&frame.header()[..], &frame.body].concat())
}

/// The message is written as the golden bytes and read from them.
fn check<M: Message + PartialEq + Debug>(index: usize, stream: u32, message: &M) {
    let written = encode(&message.to_frame(stream));
    let (bytes, frame) = golden(M::KIND, index);
    assert_eq!(written, hex(&bytes), "{message:?}");
    assert_eq!(frame.stream, stream);
    assert_eq!(M::from_frame(&frame).as_ref(), Ok(message));
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn ready() -> Ready {
    Ready {
        agent_version: text("0.1.0"),
        kernel_release: text("6.12.57"),
        timings: BootTimings {
            init_us: 1,
            hello_us: 127,
            bootstrap_us: 128,
            mounted_us: 300_000,
            ready_us: u64::MAX,
        },
    }
}

#[test]
fn every_kind_has_golden_bytes() {
    let known: Vec<Kind> = GOLDEN.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(known, Kind::ALL);
}

#[test]
fn the_hello_keeps_its_bytes() {
    let hello = Hello { oldest: 1, newest: 2, capabilities: 0x0102 };
    let (bytes, frame) = golden(Kind::Hello, 0);
    assert_eq!(encode(&hello.to_frame()), hex(&bytes));
    assert_eq!(Hello::from_frame(&frame), Ok(hello));
}

#[test]
fn messages_of_the_boot_keep_their_bytes() {
    let disks = Bootstrap {
        wall_clock: Timestamp { seconds: 1_700_000_000, nanoseconds: 999_999_999 },
        entropy: (0..32).collect(),
        hostname: text("box"),
        root: Root { lower: Disk(0), upper: Upper::Disk(Disk(1)) },
        defaults: ExecDefaults {
            env: vec![pair("A", "1"), pair("B", "")],
            cwd: Some(text("/srv")),
            user: Some(text("app:1000")),
        },
        is_clone: true,
    };
    check(0, 0, &disks);
    let memory = Bootstrap {
        wall_clock: Timestamp { seconds: -1, nanoseconds: 0 },
        entropy: vec![0xff; 3],
        hostname: text("m"),
        root: Root { lower: Disk(2), upper: Upper::Memory { size_bytes: 1 << 30 } },
        defaults: ExecDefaults::default(),
        is_clone: false,
    };
    check(1, 0, &memory);
    check(0, 0, &ready());
    let stage = BootStage::MountUpper;
    check(0, 0, &BootFailed { stage, errno: 22, object: text("/dev/vdb") });
}

#[test]
fn messages_of_the_link_keep_their_bytes() {
    check(0, 0, &Shutdown { grace_ms: 10_000 });
    check(0, 0, &Stopped {});
    let wall_clock = Timestamp { seconds: 1_700_000_000, nanoseconds: 999_999_999 };
    let hostname = Some(text("box"));
    check(0, 0, &Rebirth { wall_clock, entropy: (0..32).collect(), hostname });
    let wall_clock = Timestamp { seconds: 0, nanoseconds: 0 };
    check(1, 0, &Rebirth { wall_clock, entropy: Vec::new(), hostname: None });
    check(0, 0, &Hold {});
    check(0, 0, &Held {});
    check(0, 0, &Release {});
    check(0, 0, &Ping { token: 7 });
    check(0, 0, &Pong { token: u64::MAX });
    check(0, 9, &Unsupported { kind: 200 });
    check(0, 0, &Welcome { first_stream: 1 << 20, stream_count: 1 << 20, ready: ready() });
    check(0, 0, &Stop { timeout_ms: 10_000 });
    check(0, 0, &Drain {});
    check(0, 1, &Pause {});
    check(0, 1, &Resume {});
    check(0, 1, &Concluded { outcome: Outcome::Done });
    check(1, 1, &Concluded { outcome: Outcome::Failed { detail: text("late") } });
    check(0, 1, &Save { folder: text("s-1a") });
    check(3, 1, &Concluded { outcome: Outcome::Saved { still_us: 300 } });
    check(4, 1, &Concluded { outcome: Outcome::DiskFull { detail: text("late") } });
    check(2, 1, &Concluded { outcome: Outcome::Unsupported { vmm: text("libkrun") } });
    check(0, 0, &Ended { exit_record: text("{}") });
}

fn full_exec() -> Exec {
    Exec {
        program: Program::Path(text("sh")),
        args: vec![text("-c"), text("exit 7")],
        env: vec![pair("K", "v")],
        cwd: Some(text("/tmp")),
        user: Some(text("root")),
        stdin: StdinMode::Pipe,
        terminal: Some(TerminalSize { rows: 24, columns: 80 }),
        rlimits: vec![Rlimit { resource: RlimitResource::Nofile, soft: 1024, hard: u64::MAX }],
        timeout_ms: Some(2000),
        window: 524_288,
    }
}

#[test]
fn messages_of_a_command_keep_their_bytes() {
    check(0, 258, &full_exec());
    let bare = Exec {
        program: Program::SelfTest,
        args: vec![],
        env: vec![],
        cwd: None,
        user: None,
        stdin: StdinMode::Null,
        terminal: None,
        rlimits: vec![],
        timeout_ms: None,
        window: 0,
    };
    check(1, 1, &bare);
    let limits = ExecLimits {
        memory_bytes: Some(64 << 20),
        cpu_thousandths: Some(500),
        processes: Some(64),
    };
    check(0, 1, &LimitedExec { exec: bare.clone(), limits });
    check(1, 1, &LimitedExec { exec: bare, limits: ExecLimits::default() });
    check(0, 1, &ExecStarted { pid: 300, window: 524_288 });
    let failure = ExecFailure::NotFound;
    check(0, 1, &ExecFailed { failure, errno: 2, object: text("nope") });
    let usage = Usage { user_us: 1500, system_us: 250, peak_memory_bytes: 1 << 20 };
    let status = ExitStatus::Code(7);
    check(0, 1, &ExecExited { status, timed_out: false, out_of_memory: false, usage });
    let status = ExitStatus::Signal(9);
    check(1, 1, &ExecExited { status, timed_out: true, out_of_memory: true, usage });
    check(0, 1, &Signal { signal: 15 });
    check(0, 1, &Resize { size: TerminalSize { rows: 50, columns: 300 } });
    check(0, 1, &Credit { bytes: 65_536 });
    check(0, 1, &StdinClosed { errno: 32 });
    check(0, 1, &Kill {});
}

#[test]
fn operations_on_files_keep_their_bytes() {
    for (index, operation) in file_operations().into_iter().enumerate() {
        check(index, 1, &FileCall { window: 524_288, operation });
    }
}

fn path(path: &[u8]) -> PathBytes {
    PathBytes::from(path.to_vec())
}

fn file_operations() -> Vec<FileOperation> {
    let attributes = FileAttributes {
        mode: Some(0o4755),
        uid: Some(1),
        gid: Some(2),
        size: Some(3),
        accessed: Some(Timestamp { seconds: -1, nanoseconds: 5 }),
        modified: Some(Timestamp { seconds: 6, nanoseconds: 7 }),
    };
    vec![
        FileOperation::Stat { path: path(b"/etc"), follow: true },
        FileOperation::List { path: path(b"/") },
        FileOperation::Read { path: path(b"/\xff"), offset: 7, len: Some(300) },
        FileOperation::Write { path: path(b"f"), how: WriteMode::Replace, mode: Some(0o600) },
        FileOperation::Write { path: path(b"f"), how: WriteMode::Append, mode: None },
        FileOperation::MakeDirectory { path: path(b"d"), parents: true, mode: 0o755 },
        FileOperation::Remove { path: path(b"f") },
        FileOperation::RemoveDirectory { path: path(b"d"), recursive: false },
        FileOperation::Rename { from: path(b"a"), to: path(b"b") },
        FileOperation::Copy { from: path(b"a"), to: path(b"b") },
        FileOperation::Symlink { target: path(b"t"), path: path(b"l") },
        FileOperation::ReadLink { path: path(b"l") },
        FileOperation::SetAttributes { path: path(b"f"), follow: false, attributes },
        FileOperation::Pack { path: path(b"/srv"), name: path(b"srv"), follow: false },
        FileOperation::Unpack { path: path(b"/"), only: Some(path(b"srv")), owners: true },
    ]
}

#[test]
fn messages_of_jobs_keep_their_bytes() {
    let limits = ExecLimits {
        memory_bytes: Some(64 << 20),
        cpu_thousandths: Some(500),
        processes: Some(64),
    };
    let operations = [
        JobOperation::Start { exec: full_exec(), limits },
        JobOperation::List,
        JobOperation::Output { id: 300, follow: true, from_start: false },
        JobOperation::Wait { id: 1 },
        JobOperation::Signal { id: 1, signal: 15 },
        JobOperation::Kill { id: 1 },
        JobOperation::Forget { id: 1 },
        JobOperation::Attach { id: 1, size: Some(TerminalSize { rows: 50, columns: 300 }) },
        JobOperation::Describe { id: None },
        JobOperation::StartOnTerminal { exec: full_exec(), limits },
    ];
    for (index, operation) in operations.into_iter().enumerate() {
        check(index, 1, &JobCall { window: 524_288, operation });
    }
    let running = JobInfo {
        id: 1,
        command: vec![text("sleep"), text("9")],
        pid: 300,
        started: Timestamp { seconds: 1_700_000_000, nanoseconds: 5 },
        ended: None,
        output_bytes: 0,
        dropped_bytes: 0,
    };
    let usage = Usage { user_us: 1500, system_us: 250, peak_memory_bytes: 1 << 20 };
    let status = ExitStatus::Code(7);
    let ended = JobInfo {
        id: 2,
        command: vec![text("true")],
        pid: 301,
        started: Timestamp { seconds: 1, nanoseconds: 2 },
        ended: Some(JobEnd {
            at: Timestamp { seconds: 3, nanoseconds: 4 },
            exited: ExecExited { status, timed_out: false, out_of_memory: false, usage },
        }),
        output_bytes: 2_000_000,
        dropped_bytes: 951_424,
    };
    check(0, 1, &Detach {});
    check(0, 1, &JobAttached { pid: 300, window: 524_288, terminal: true });
    let detail = JobDetail {
        info: running.clone(),
        limits: ExecLimits { memory_bytes: Some(64 << 20), ..ExecLimits::default() },
        usage,
        terminal: true,
    };
    check(0, 1, &JobDetails { jobs: vec![detail] });
    check(1, 1, &JobDetails { jobs: vec![] });
    check(0, 1, &running);
    check(1, 1, &ended);
    check(0, 1, &Jobs { jobs: vec![running, ended] });
    check(1, 1, &Jobs { jobs: vec![] });
    check(0, 1, &JobGap { bytes: 70_000 });
    check(0, 1, &JobUnknown { id: 300 });
}

#[test]
fn messages_of_metrics_and_the_clock_keep_their_bytes() {
    check(0, 1, &MetricsCall {});
    let metrics = Metrics {
        uptime_ms: 300,
        cpu_ms: 1,
        memory_total_bytes: 2,
        memory_available_bytes: 3,
        disk_read_bytes: 4,
        disk_written_bytes: 5,
        upper_total_bytes: 6,
        upper_used_bytes: 7,
        processes: 300,
        commands: 9,
    };
    check(0, 1, &metrics);
    let wall_clock = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
    check(0, 0, &SetClock { wall_clock });
    let defaults = ExecDefaults {
        env: vec![pair("A", "1")],
        cwd: Some(text("/srv")),
        user: Some(text("app")),
    };
    check(
        0,
        0,
        &Become { wall_clock, entropy: (0..32).collect(), hostname: text("box"), defaults },
    );
}

/// Records and failures go as bytes of a stream, not as frames.
#[test]
fn answers_about_files_keep_their_bytes() {
    let metadata = FileMetadata {
        kind: FileKind::Symlink,
        size: 300,
        mode: 0o777,
        uid: 1,
        gid: 2,
        links: 1,
        accessed: Timestamp { seconds: -1, nanoseconds: 5 },
        modified: Timestamp { seconds: 6, nanoseconds: 7 },
        created: None,
    };
    let record = to_record(&FileEntry { name: b"a\xff".to_vec(), metadata });
    assert_eq!(hex(&record), "100000000261ff03ac02ff0301020101050c0700");
    let failed = FileFailed {
        failure: FileFailure::Kernel,
        errno: 28,
        action: text("write"),
        path: b"/f".to_vec(),
    };
    assert_eq!(hex(&failed.to_bytes()), "0138057772697465022f66");
    assert_eq!(FileFailed::from_bytes(&failed.to_bytes()), Some(failed));
}

#[test]
fn bulk_keeps_its_bytes() {
    for (kind, stream) in [(Kind::Stdin, 1), (Kind::Stdout, 258), (Kind::Stderr, 0x0102_0304)] {
        let (bytes, frame) = golden(kind, 0);
        let written = Frame::bulk(stream, kind, Bytes::from_static(b"hi\n"));
        assert_eq!((encode(&written), &frame), (hex(&bytes), &written));
    }
    let (bytes, frame) = golden(Kind::Stdin, 1);
    let written = Frame::end(1, Kind::Stdin);
    assert_eq!((encode(&written), &frame), (hex(&bytes), &written));
    assert!(frame.is_end());
}

#[test]
fn codes_keep_their_bytes() {
    let failures: Vec<u8> = ExecFailure::ALL.iter().map(|code| u8::from(*code)).collect();
    assert_eq!(failures, (0..=11).collect::<Vec<u8>>());
    let stages: Vec<u8> = BootStage::ALL.iter().map(|code| u8::from(*code)).collect();
    assert_eq!(stages, (0..=9).collect::<Vec<u8>>());
    let limits: Vec<u8> = RlimitResource::ALL.iter().map(|code| u8::from(*code)).collect();
    assert_eq!(limits, (0..=15).chain([255]).collect::<Vec<u8>>());
    let kinds: Vec<u8> = FileKind::ALL.iter().map(|code| u8::from(*code)).collect();
    assert_eq!(kinds, (0..=7).collect::<Vec<u8>>());
    let failures: Vec<u8> = FileFailure::ALL.iter().map(|code| u8::from(*code)).collect();
    assert_eq!(failures, (0..=5).collect::<Vec<u8>>());
    // A value of a later generation becomes the fallback instead of spoiling the frame.
    assert_eq!(ExecFailure::from(200), ExecFailure::Other);
    assert_eq!(BootStage::from(200), BootStage::Other);
    assert_eq!(RlimitResource::from(200), RlimitResource::Unknown);
}
