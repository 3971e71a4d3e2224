//! `cargo xtask soak`: what goes on for long, and nothing left of it.
//!
//! Here: thousands of commands, some of their clients killed.
//! Guest processes, control groups, the agent's descriptors, and the supervisor's descriptors and
//! threads are counted before and after.

mod idle;
mod left;
mod life;
mod starts;

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, RandomState},
    ops::Range,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    cli::{SoakOptions, Soaked},
    load::Loaded,
    terminal,
};

const SANDBOX: &str = "soak-exec";

/// Commands at once.
const LANES: usize = 16;

/// Time for what killed clients left to be cleared away.
const SETTLE: Duration = Duration::from_secs(60);

/// Runs the soak and says what it found.
pub(crate) fn run(options: &SoakOptions) -> Result<()> {
    match options.what {
        Soaked::Exec { count } => commands(count),
        Soaked::Idle { sandboxes, minutes } => idle::run(sandboxes, minutes),
        Soaked::Life { count } => life::run(count),
        Soaked::Starts { count } => starts::run(count),
    }
}

fn commands(count: usize) -> Result<()> {
    let loaded = Loaded::start(SANDBOX)?;
    // Once, so that what is made at first use is there.
    loaded.load(&["trips", "50", "16"])?;
    let before = held(&loaded)?;
    terminal::step(format_args!("{count} commands in a row"));
    loaded.load(&["trips", &count.to_string(), "1"])?;
    let lanes = count / 5;
    terminal::step(format_args!("{lanes} commands in {LANES} lanes, clients killed at random"));
    let killed = kill_clients(&loaded, lanes)?;
    terminal::step(format_args!("{killed} of them were killed"));
    settled(&loaded, &before)
}

/// Runs commands through `msb` and kills about half of the clients; gives how many.
fn kill_clients(loaded: &Loaded, count: usize) -> Result<usize> {
    let killed = AtomicUsize::new(0);
    let random = RandomState::new();
    in_lanes(LANES, 0..count, |turn| {
        // 0 to 63 ms: before, while and after the command runs.
        let delay = Duration::from_millis(random.hash_one(turn) % 64);
        if one_client(loaded, turn, delay)? {
            killed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    Ok(killed.into_inner())
}

/// Takes `turns`, so many at once; the first failure of a lane ends that lane.
fn in_lanes(
    lanes: usize,
    turns: Range<usize>,
    take: impl Fn(usize) -> Result<()> + Sync,
) -> Result<()> {
    let turns = Mutex::new(turns);
    let next = || turns.lock().unwrap_or_else(PoisonError::into_inner).next();
    let lane = || -> Result<()> {
        while let Some(turn) = next() {
            take(turn)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lanes: Vec<_> = (0..lanes).map(|_| scope.spawn(lane)).collect();
        lanes.into_iter().try_for_each(|lane| match lane.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// One command; true when its client was killed first.
fn one_client(loaded: &Loaded, turn: usize, delay: Duration) -> Result<bool> {
    let installed = &loaded.installed;
    let script = "echo begun; (sleep 0.02; echo more) & setsid sleep 0.03; cat";
    let mut client = Command::new(&installed.msb)
        .args(["exec", "-i", SANDBOX, "--", "sh", "-c", script])
        .env(crate::env::MSB_HOME, &installed.home)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("start msb")?;
    if turn % 2 == 1 {
        let status = client.wait().context("wait for msb")?;
        ensure!(status.success(), "a client that was left alone ended with {status}");
        return Ok(false);
    }
    // Its output ends when it does: waiting for that is waiting with a deadline.
    let output = client.stdout.take().context("take msb's output")?;
    let (ended, has_ended) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let _read = std::io::copy(&mut { output }, &mut std::io::sink());
        ended.send(()).ok();
    });
    let in_time = has_ended.recv_timeout(delay).is_ok();
    client.kill().context("kill msb")?;
    client.wait().context("wait for msb")?;
    Ok(!in_time)
}

/// What guest and host hold for the sandbox.
type Held = BTreeMap<&'static str, usize>;

fn held(loaded: &Loaded) -> Result<Held> {
    // Threads of the kernel have no program.
    let script = "ls -d /proc/[0-9]*/exe | wc -l; find /sys/fs/cgroup/exec -type d | wc -l; \
        ls /proc/1/fd | wc -l";
    let guest = loaded.shell(script)?;
    let numbers: Vec<usize> = guest.lines().filter_map(|line| line.trim().parse().ok()).collect();
    let [programs, groups, descriptors] = numbers[..] else {
        bail!("the guest counted {guest:?}");
    };
    let supervisor = loaded.supervisor()?;
    let count = |folder: &str| -> Result<usize> {
        let path = format!("/proc/{supervisor}/{folder}");
        Ok(fs::read_dir(&path).with_context(|| format!("read {path}"))?.count())
    };
    Ok(Held::from([
        ("programs in the guest", programs),
        ("control groups in the guest", groups),
        ("descriptors of the agent", descriptors),
        ("descriptors of the supervisor", count("fd")?),
        ("threads of the supervisor", count("task")?),
    ]))
}

/// Compares until nothing is held more than before.
fn settled(loaded: &Loaded, before: &Held) -> Result<()> {
    let deadline = Instant::now() + SETTLE;
    loop {
        // Each look is a command in the guest: it waits for its turn there.
        let now = held(loaded)?;
        let more = |what: &&'static str| now[what] > before[what];
        let grown: Vec<&str> = before.keys().copied().filter(|what| more(what)).collect();
        if grown.is_empty() {
            for (what, count) in now {
                terminal::result(format_args!("{count:6}  {what}, {} before", before[what]));
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("more than before: {grown:?}; before {before:?}, now {now:?}");
        }
    }
}
