//! Processes as the kernel keeps them: reaping, inherited descriptors, mounts by descriptor.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use libc::{c_int, c_uint, pid_t};
use microsandbox_protocol::{ExitStatus, Usage};
use nix::errno::Errno;
use nix::sys::signal::Signal::{SIGKILL, SIGSTOP};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};

/// A child that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub pid: pid_t,
    pub status: ExitStatus,
    /// What it and the children it waited for have used.
    pub usage: Usage,
}

/// Takes the status of one child that has ended; `None`: all still run.
///
/// # Errors
/// `ECHILD` when there are no children.
pub(crate) fn reap() -> Result<Option<Ended>, Errno> {
    let mut status: c_int = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes one int and one `rusage`, both ours.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if Errno::result(pid)? == 0 {
        return Ok(None);
    }
    // SAFETY: all of it was set, to zero or by the kernel; it is made of integers.
    let usage = unsafe { usage.assume_init() };
    let status = if libc::WIFSIGNALED(status) {
        ExitStatus::Signal(low_byte(libc::WTERMSIG(status)))
    } else {
        ExitStatus::Code(low_byte(libc::WEXITSTATUS(status)))
    };
    let usage = Usage {
        user_us: microseconds(usage.ru_utime),
        system_us: microseconds(usage.ru_stime),
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
    };
    Ok(Some(Ended { pid, status, usage }))
}

fn low_byte(value: c_int) -> u8 {
    value.to_le_bytes()[0]
}

fn microseconds(time: libc::timeval) -> u64 {
    let (seconds, rest) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec));
    seconds.unwrap_or(0) * 1_000_000 + rest.unwrap_or(0)
}

/// Marks every descriptor from 3 on to close when a program is executed.
///
/// # Errors
/// What the kernel said.
pub(crate) fn close_inherited_on_exec() -> Result<(), Errno> {
    let (first, last, flags) = (3, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: takes integers; with this flag no descriptor is closed.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    Errno::result(result).map(drop)
}

/// Gives every signal its default action, which programs inherit, and blocks what the agent reads
/// from a descriptor (`SIGCHLD`) or from a failed write (`SIGPIPE`). PID 1 is immune to the rest.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_signals() -> Result<(), Errno> {
    for signal in Signal::iterator().filter(|signal| !matches!(signal, SIGKILL | SIGSTOP)) {
        // SAFETY: the default action runs no code of this process.
        unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
    }
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGCHLD);
    blocked.add(Signal::SIGPIPE);
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&blocked), None)
}

/// `FSPICK_CLOEXEC | FSPICK_EMPTY_PATH` of `linux/mount.h`.
const FSPICK_FLAGS: c_uint = 0x1 | 0x8;
/// Of `linux/mount.h`: sets an option that has no value.
const FSCONFIG_SET_FLAG: c_uint = 0;
/// Of `linux/mount.h`: applies the options set before.
const FSCONFIG_CMD_RECONFIGURE: c_uint = 7;

/// Makes the file system that holds `directory` read-only, wherever it is mounted and even where no
/// path leads to it any more.
///
/// # Errors
/// `EBUSY` while a file is open for writing.
pub(crate) fn make_read_only(directory: impl AsFd) -> Result<(), Errno> {
    let directory = directory.as_fd().as_raw_fd();
    // SAFETY: reads an empty, nul-terminated path; gives a new descriptor.
    let context = unsafe { libc::syscall(libc::SYS_fspick, directory, c"".as_ptr(), FSPICK_FLAGS) };
    let context = c_int::try_from(Errno::result(context)?).expect("descriptors are ints");
    // SAFETY: the kernel has just made it for us; nobody else knows it.
    let context = unsafe { OwnedFd::from_raw_fd(context) };
    configure(&context, FSCONFIG_SET_FLAG, Some(c"ro"))?;
    configure(&context, FSCONFIG_CMD_RECONFIGURE, None)
}

fn configure(context: &OwnedFd, command: c_uint, key: Option<&CStr>) -> Result<(), Errno> {
    let key = key.map_or(ptr::null(), CStr::as_ptr);
    let (value, auxiliary) = (ptr::null::<u8>(), 0);
    // SAFETY: `key` is null or nul-terminated, as `command` wants it; neither command has a value.
    let result = unsafe {
        libc::syscall(libc::SYS_fsconfig, context.as_raw_fd(), command, key, value, auxiliary)
    };
    Errno::result(result).map(drop)
}
