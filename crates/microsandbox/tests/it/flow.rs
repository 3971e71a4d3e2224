//! Flow: hundreds of megabytes each way, and a client that stands still costs nobody else anything.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{ExecEvent, Sandbox};

use crate::{directory, sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("flow::bytes_of_both_directions_arrive_as_they_were", both_directions),
        trial("flow::a_client_that_stands_still_slows_nobody", stands_still),
        trial("flow::hundreds_of_commands_leave_nothing_behind", nothing_is_left),
        trial("flow::a_client_that_lies_is_dropped_alone", liars),
    ]
}

/// Bytes of each direction: enough to go through every window many times.
const BYTES: usize = 256 << 20;

/// Bytes after which the pattern begins again. It is no multiple of any piece.
const PERIOD: usize = 1_000_003;

/// Two turns of bytes that differ from their neighbours wherever a piece is cut out.
fn pattern() -> Vec<u8> {
    let mut state = 1_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_le_bytes()[3]
    };
    let turn: Vec<u8> = std::iter::repeat_with(next).take(PERIOD).collect();
    turn.repeat(2)
}

async fn both_directions() -> Result<()> {
    let sandbox = sandbox("both-directions").create().await?;
    let none: [&str; 0] = [];
    let mut command = sandbox.exec_stream_with("cat", |options| options.stdin_pipe()).await?;
    let _stopped = Stopped::flooded("both-directions")?;
    let (before, faults) = (memory(&sandbox).await?, page_faults(&sandbox).await?);
    let sink = command.take_stdin().context("it was asked for")?;
    let sending = tokio::spawn(async move {
        let (pattern, mut sent) = (pattern(), 0);
        while sent < BYTES {
            let (at, len) = (sent % PERIOD, (BYTES - sent).min(100_000));
            sink.write(&pattern[at..at + len]).await?;
            sent += len;
        }
        sink.close().await
    });
    let (pattern, mut came) = (pattern(), 0);
    while let Some(event) = command.recv().await {
        let ExecEvent::Stdout(piece) = event else { continue };
        let at = came % PERIOD;
        ensure!(piece == pattern[at..at + piece.len()], "other bytes come after {came}");
        came += piece.len();
    }
    sending.await??;
    ensure!(command.wait().await?.success);
    ensure!(came == BYTES, "{came} bytes came back");
    ensure_flat(before, memory(&sandbox).await?)?;
    let fresh = page_faults(&sandbox).await? - faults;
    ensure!(fresh < BYTES as u64 / (64 << 10), "the agent took {fresh} fresh pages on the way");
    ensure!(sandbox.exec("true", none).await?.status().success);
    sandbox.stop().await?;
    Ok(())
}

/// Pages the agent has been given so far. Each costs an emulated processor as much as to move tens of
/// kilobytes.
async fn page_faults(sandbox: &Sandbox) -> Result<u64> {
    let stat = sandbox.exec("cat", ["/proc/1/stat"]).await?.stdout()?;
    let fields = stat.rsplit_once(") ").context("the name ends")?.1;
    // `minflt`, the tenth field of proc_pid_stat(5).
    fields.split(' ').nth(7).and_then(|count| count.parse().ok()).context("there is a count")
}

/// A client that takes nothing of what it has asked for, as one under SIGSTOP.
struct Stopped {
    _socket: UnixStream,
}

impl Stopped {
    /// One whose command writes as much as it can.
    fn flooded(name: &str) -> Result<Self> {
        let mut socket = UnixStream::connect(directory(name).join("agent.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(30)))?;
        // The welcome begins with the first of its streams, in three bytes of seven bits.
        let mut welcome = [0; 13];
        socket.read_exact(&mut welcome)?;
        let digits = welcome[10..].iter().rev();
        let stream = digits.fold(0, |high, digit| high << 7 | u32::from(digit & 0x7f));
        // `Exec` as `docs/formats/protocol.md` has it: `cat /dev/zero`, and a window of 512 KiB.
        let body = [b"\0\x03cat\x01\x09/dev/zero", &[0; 7][..], &[0x80, 0x80, 0x20]].concat();
        socket.write_all(&frame(stream, 16, &body))?;
        Ok(Self { _socket: socket })
    }
}

/// The median time that `true` takes from a connection of its own.
async fn round_trip(name: &str) -> Result<Duration> {
    let other = Sandbox::get(name).await?.connect().await?;
    let mut took = Vec::new();
    for _ in 0..21 {
        let begun = Instant::now();
        let none: [&str; 0] = [];
        ensure!(other.exec("true", none).await?.status().success);
        took.push(begun.elapsed());
    }
    took.sort();
    Ok(took[took.len() / 2])
}

/// Memory of the supervisor and of the agent, KiB.
async fn memory(sandbox: &Sandbox) -> Result<[u64; 2]> {
    let record = std::fs::read_to_string(directory(sandbox.name()).join("run.json"))?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let host = std::fs::read_to_string(format!("/proc/{}/status", record["pid"]))?;
    let guest = sandbox.exec("cat", ["/proc/1/status"]).await?.stdout()?;
    let resident = |status: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        number.context("a process has memory")
    };
    Ok([resident(&host)?, resident(&guest)?])
}

/// Supervisor and agent hold no more than a window of half a MiB for each of a few clients, and what
/// allocators keep.
fn ensure_flat(before: [u64; 2], after: [u64; 2]) -> Result<()> {
    for (what, (before, after)) in ["supervisor", "agent"].iter().zip(before.iter().zip(after)) {
        ensure!(after < before + (8 << 10), "{what}: {before} KiB, then {after} KiB");
    }
    Ok(())
}

async fn stands_still() -> Result<()> {
    let name = "stands-still";
    let sandbox = sandbox(name).create().await?;
    let usual = round_trip(name).await?;
    let before = memory(&sandbox).await?;
    let mut floods = Vec::new();
    for _ in 0..4 {
        let client = Sandbox::get(name).await?.connect().await?;
        let mut flood = client.exec_stream("cat", ["/dev/zero"]).await?;
        ensure!(matches!(flood.recv().await, Some(ExecEvent::Started { .. })));
        ensure!(matches!(flood.recv().await, Some(ExecEvent::Stdout(_))));
        floods.push((client, flood));
    }
    // Nobody takes any of it from here on.
    let beside = round_trip(name).await?;
    ensure!(beside < usual * 2 + Duration::from_millis(5), "{usual:?}, and {beside:?} beside them");
    let after = memory(&sandbox).await?;
    ensure_flat(before, after)?;
    drop(floods);
    sandbox.stop().await?;
    Ok(())
}

/// A frame as it goes over the wire.
fn frame(stream: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len() + 6).expect("small");
    [&len.to_le_bytes()[..], &stream.to_le_bytes(), &[kind, 0], body].concat()
}

async fn liars() -> Result<()> {
    let sandbox = sandbox("liars").create().await?;
    let mut honest = sandbox.exec_stream("cat", ["/dev/zero"]).await?;
    ensure!(matches!(honest.recv().await, Some(ExecEvent::Started { .. })));
    let none: [&str; 0] = [];
    for (lie, bytes) in [
        ("a length of nothing", vec![0; 4]),
        ("a length beyond all frames", vec![0xff; 64]),
        ("a stream of somebody else", frame(u32::MAX, 24, &[])),
        ("a body that is none", frame(0, 49, &[])),
    ] {
        let mut liar = UnixStream::connect(directory("liars").join("agent.sock"))?;
        liar.set_read_timeout(Some(Duration::from_secs(30)))?;
        liar.write_all(&bytes)?;
        let mut answer = Vec::new();
        let read = tokio::task::spawn_blocking(move || liar.read_to_end(&mut answer)).await?;
        let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        ensure!(
            read.as_ref().map_or_else(reset, |_| true),
            "{lie}: its link is not closed: {read:?}"
        );
        ensure!(sandbox.exec("true", none).await?.status().success, "{lie}");
    }
    ensure!(matches!(honest.recv().await, Some(ExecEvent::Stdout(_))), "the honest one goes on");
    drop(honest);
    sandbox.stop().await?;
    Ok(())
}

/// Processes, control groups and descriptors of the agent, and descriptors of the supervisor.
async fn held(sandbox: &Sandbox) -> Result<[usize; 4]> {
    let count = "ls -d /proc/[0-9]*/exe | wc -l; find /sys/fs/cgroup/exec -type d | wc -l; \
        ls /proc/1/fd | wc -l";
    let text = sandbox.shell(count).await?.stdout()?;
    let numbers: Vec<usize> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let [processes, groups, descriptors] = numbers[..] else { anyhow::bail!("counted {text:?}") };
    let record = std::fs::read_to_string(directory(sandbox.name()).join("run.json"))?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    let host = std::fs::read_dir(format!("/proc/{}/fd", record["pid"]))?.count();
    Ok([processes, groups, descriptors, host])
}

async fn nothing_is_left() -> Result<()> {
    let name = "nothing-is-left";
    let sandbox = sandbox(name).create().await?;
    let first = sandbox.shell("true").await?;
    ensure!(first.status().success);
    let before = held(&sandbox).await?;
    let lane = |lane: usize| async move {
        for turn in 0..20 {
            let client = Sandbox::get(name).await?.connect().await?;
            let script = "(sleep 0.01; echo more) & echo begun; setsid sleep 0.02; cat";
            let mut command =
                client.shell_stream_with(script, |options| options.stdin_pipe()).await?;
            match (lane + turn) % 4 {
                // Dropped before, while and after it writes.
                0 => {}
                1 => while !matches!(command.recv().await, Some(ExecEvent::Stdout(_))) {},
                _ => {
                    command.take_stdin().context("it was asked for")?.close().await?;
                    ensure!(command.collect().await?.stdout()?.contains("begun"));
                }
            }
        }
        Ok(())
    };
    futures_util::future::try_join_all((0..8).map(lane)).await?;
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let after = held(&sandbox).await?;
        if after.iter().zip(before).all(|(after, before)| *after <= before) {
            break;
        }
        ensure!(Instant::now() < deadline, "{before:?} before, {after:?} after");
    }
    sandbox.stop().await?;
    Ok(())
}
