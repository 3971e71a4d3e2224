//! The unsafe corner of this crate: descriptors of another process, what a child does before it
//! executes its program, and libkrun.
#![expect(unsafe_code, reason = "the one module of the crate where syscalls and FFI need it")]

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

pub(crate) mod confine;
#[cfg(feature = "libkrun")]
pub(crate) mod krun;
pub(crate) mod kvm;

/// Takes ownership of descriptors that `recvmsg` has just installed in this process.
pub(crate) fn own_received_fds(raw: Vec<RawFd>) -> Vec<OwnedFd> {
    raw.into_iter()
        .map(|fd| {
            // SAFETY: `SCM_RIGHTS` installs each descriptor newly in this process (unix(7)), and the
            // vector is consumed here, so nothing else owns or closes them.
            unsafe { OwnedFd::from_raw_fd(fd) }
        })
        .collect()
}

/// Puts a descriptor that is read from, and must not block, into the event loop.
///
/// # Errors
/// What the kernel said: regular files, for one, cannot be waited for.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and names the same file for as long as the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// Leaves the processors to everybody else: this process and its children run when they are idle.
///
/// # Errors
/// What the kernel said.
pub(crate) fn run_when_idle() -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: reads one `sched_param`, and changes nothing but how this process is scheduled.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The processor's time stamp counter; `None` on processors that have another kind of clock.
pub(crate) fn time_stamp() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: every x86-64 processor has the instruction, and Linux lets programs execute it
        // unless they have asked it not to (`PR_SET_TSC`, prctl(2)).
        Some(unsafe { std::arch::x86_64::_rdtsc() })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}
