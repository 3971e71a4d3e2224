//! Whether KVM runs guest code here, found out by running some.
//!
//! Hosts exist where `/dev/kvm` opens and makes VMs whose code then crawls through an instruction
//! emulator. So a child process runs a small loop in a real vCPU against a deadline.

use std::{
    fs,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{Program, program::Role, sys::kvm};

/// What the probe found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvmProbe {
    /// Guest code runs at the processor's speed.
    pub works: bool,
    /// What was seen, as a sentence fragment for messages.
    pub detail: String,
    /// How long the guest code took, microseconds.
    pub took_us: u64,
}

/// Iterations of a two-instruction loop: 2 ms on any processor of this decade, many seconds in an
/// emulator that takes a microsecond for each instruction.
const ITERATIONS: u32 = 5_000_000;

/// Longest the loop may take. A busy host may stretch 2 ms a hundredfold.
const DEADLINE: Duration = Duration::from_millis(400);

/// Runs the probe, or reads what it found earlier since this boot from `cache`.
///
/// Only a finding about running code is kept: a missing permission may be granted at any time.
/// Blocks for at most half a second, the first time.
pub fn probe_kvm(program: &Program, cache: &Path) -> KvmProbe {
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return KvmProbe { works: false, detail: format!("open /dev/kvm: {error}"), took_us: 0 };
    }
    let boot_id = boot_id();
    if let Some(kept) = read_cache(cache).filter(|kept| kept.boot_id == boot_id) {
        return kept.probe;
    }
    let probe = match run_child(program) {
        Ok(probe) => probe,
        Err(error) => {
            return KvmProbe {
                works: false,
                detail: format!("run the KVM probe: {error}"),
                took_us: 0,
            };
        }
    };
    let kept = Kept { boot_id, probe };
    if let Err(error) = write_whole(cache, &kept) {
        // The next command probes again.
        tracing::debug!(path = %cache.display(), %error, "could not keep the probe's finding");
    }
    kept.probe
}

#[derive(Serialize, Deserialize)]
struct Kept {
    boot_id: String,
    probe: KvmProbe,
}

fn read_cache(path: &Path) -> Option<Kept> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Names this boot of the host: what was found out holds until the next.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Writes what was found, so that a reader sees all of it or what was there before.
pub(crate) fn write_whole(path: &Path, kept: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&temporary, serde_json::to_vec(kept)?)?;
    fs::rename(&temporary, path)
}

fn run_child(program: &Program) -> io::Result<KvmProbe> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    let (mut command, mut socket) = program.command(Role::Probe, "", null.into())?;
    let mut child = command.spawn()?;
    // Its copy of the far end is in the command; the answer ends when the child's is the last.
    drop(command);
    socket.set_read_timeout(Some(DEADLINE))?;
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    child.kill()?;
    child.wait()?;
    if let Err(error) = read {
        if error.kind() != io::ErrorKind::WouldBlock {
            return Err(error);
        }
        return Ok(KvmProbe {
            works: false,
            detail: format!(
                "KVM does not run guest code at usable speed: {ITERATIONS} loop iterations did not \
                 finish in {} ms",
                DEADLINE.as_millis()
            ),
            took_us: u64::try_from(DEADLINE.as_micros()).unwrap_or(u64::MAX),
        });
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// The role: runs the loop and tells the parent through its standard input.
pub(crate) fn run() -> ExitCode {
    let began = Instant::now();
    let outcome = kvm::run_loop(ITERATIONS);
    let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let (works, detail) = match outcome {
        Ok(()) => (true, "KVM runs guest code".to_owned()),
        Err(problem) => (false, problem),
    };
    let answer = serde_json::to_vec(&KvmProbe { works, detail, took_us });
    let tell = || -> io::Result<()> {
        let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        socket.write_all(&answer?)
    };
    if tell().is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
