//! PID 1 from the first instruction to power off.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use microsandbox_protocol::{BootStage, BootTimings, Ready, Stopped};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::sync;

use crate::boot;
use crate::cgroup::{self, Cgroups};
use crate::console;
use crate::error::Error;
use crate::port::{Absence, Handshake, Start, open_port, send_last};
use crate::run::{self, Scope, Setup};
use crate::sys::process::make_read_only;

/// Runs the machine until its end; never returns in a guest that can power off.
///
/// # Errors
/// Why the machine could not be what the host wanted; the machine ends after it.
pub(crate) fn init() -> Result<(), Error> {
    let lived = live();
    if let Err(error) = &lived {
        console::report(error);
    }
    power_off();
    lived
}

fn live() -> Result<(), Error> {
    let mut timings = BootTimings { init_us: now_us(), ..BootTimings::default() };
    // Before the root changes: `/init` is the file this process runs.
    let agent = File::open("/init").map_err(Error::Runtime)?;
    boot::prepare()?;
    let cgroups =
        Cgroups::new(Path::new(cgroup::MOUNT_POINT)).map_err(|error| no_cgroups(&error))?;
    cgroups.tidy();
    let null = File::options().read(true).write(true).open("/dev/null").map_err(Error::Runtime)?;

    let mut handshake = Handshake::new(open_port()?, Absence::Passing)?;
    handshake.greet()?;
    timings.hello_us = now_us();
    let Start::Boot(bootstrap) = handshake.start()? else { return Ok(()) };
    timings.bootstrap_us = now_us();
    let booted = boot::become_sandbox(&bootstrap);
    timings.mounted_us = now_us();
    let (upper, identity) = match booted {
        Ok(booted) => booted,
        Err(error) => {
            let (port, _) = handshake.into_parts();
            send_last(port, &boot::failure(&error))?;
            return Err(error);
        }
    };

    let (port, decoder) = handshake.into_parts();
    let last = port.as_fd().try_clone_to_owned().map_err(Error::Runtime)?;
    let setup = Setup {
        port,
        decoder,
        defaults: bootstrap.defaults,
        cgroups: Some(cgroups),
        agent,
        null,
        scope: Scope::Machine,
        identity: Some(identity),
    };
    let end = run::run(setup, move || ready(timings));
    settle(&upper);
    match end? {
        run::End::Shutdown => send_last(last, &Stopped {}),
        run::End::HostGone => Ok(()),
    }
}

fn no_cgroups(error: &io::Error) -> Error {
    let errno = boot::errno(error);
    Error::Boot { stage: BootStage::Cgroups, object: cgroup::MOUNT_POINT.to_owned(), errno }
}

/// What the host is told once commands can run.
pub(crate) fn ready(mut timings: BootTimings) -> Ready {
    let release = uname().map(|names| names.release().to_string_lossy().into_owned());
    timings.ready_us = now_us();
    Ready {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: release.unwrap_or_default(),
        timings,
    }
}

/// Brings everything written to the disks.
fn settle(upper: &OwnedFd) {
    sync();
    if let Err(errno) = make_read_only(upper) {
        // All data is on the disk; the journal is replayed at the next start.
        console::say(&format!("remount the writable layer read-only: {errno}"));
    }
}

/// Ends the machine.
///
/// By restart: a machine without ACPI (`-M microvm,acpi=off`, libkrun) has no power switch and would
/// halt for ever, while the VMM ends at a reset (`-no-reboot`, or the way `reboot=` names).
fn power_off() {
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    console::say(&format!("restart the machine: {errno}"));
}

/// Microseconds since the kernel started.
pub(crate) fn now_us() -> u64 {
    let Ok(time) = clock_gettime(ClockId::CLOCK_BOOTTIME) else { return 0 };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec()), u64::try_from(time.tv_nsec()));
    seconds.unwrap_or(0) * 1_000_000 + nanoseconds.unwrap_or(0) / 1000
}
