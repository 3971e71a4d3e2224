//! Starting a process: one `clone3`, and the calls of the child that `nix` has not got.
//!
//! The child is a copy of the agent, not a guest in its memory: whatever it has to wait for until
//! `execve`, it waits for alone. The copy is cheap, the agent holds a few hundred KiB.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use libc::{c_char, c_int, c_uint, c_void};
use nix::errno::Errno;

/// `CLONE_CLEAR_SIGHAND` (Linux 5.5): programs expect every signal to do what it does by default.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Linux 5.7.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of `linux/sched.h`.
#[derive(Debug, Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// `CLONE_ARGS_SIZE_VER2`, the size that has `cgroup`.
const _: () = assert!(size_of::<CloneArgs>() == 88);

/// Makes a process that does `child` and, if that comes back, exits; gives its pid.
///
/// It is born in the cgroup v2 whose directory is given.
///
/// # Errors
/// What the kernel said.
pub(crate) fn fork(
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> Result<libc::pid_t, Errno> {
    let args = CloneArgs {
        flags: CLONE_CLEAR_SIGHAND | if cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.map_or(0, |directory| u64::from(directory.as_raw_fd().unsigned_abs())),
        ..CloneArgs::default()
    };
    // SAFETY: reads `args`, whose size is given. Without a stack and without `CLONE_VM` the child goes
    // on here with a copy of this memory, as after `fork(2)`. This process has one thread, so that no
    // lock in that copy is held by a thread that the child has not got.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid == 0 {
        // Even a panic must not lead the child back into the event loop.
        let _exit = Exit;
        child();
    }
    Errno::result(pid).map(|pid| c_int::try_from(pid).expect("process ids are ints"))
}

/// Ends this process when dropped, without running anything else.
struct Exit;

impl Drop for Exit {
    fn drop(&mut self) {
        // SAFETY: takes an integer; no destructor runs.
        unsafe { libc::_exit(127) }
    }
}

/// Closes every descriptor from 3 on but those in `kept`.
///
/// For a child that is about to become a program: whatever it may be waiting for then, it holds no
/// end of another command's pipes.
pub(crate) fn close_all_but<const N: usize>(mut kept: [RawFd; N]) {
    kept.sort_unstable();
    let mut first: c_uint = 3;
    for kept in kept.into_iter().filter_map(|fd| c_uint::try_from(fd).ok()) {
        if kept > first {
            close_range(first, kept - 1);
        }
        first = first.max(kept + 1);
    }
    close_range(first, c_uint::MAX);
}

fn close_range(first: c_uint, last: c_uint) {
    let flags: c_uint = 0;
    // SAFETY: takes integers. What is closed belongs to values that the child never touches again.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Sets a limit of this process, by resource number.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_limit(resource: c_int, limit: &libc::rlimit64) -> Result<(), Errno> {
    let (this, none) = (0, ptr::null_mut::<c_void>());
    // SAFETY: reads one `rlimit64` from a reference; no old value is stored, for the last pointer is
    // null.
    let result =
        unsafe { libc::syscall(libc::SYS_prlimit64, this, resource, &raw const *limit, none) };
    Errno::result(result).map(drop)
}

/// Strings as `execve` takes them: pointers, the last one null.
#[derive(Debug)]
pub(crate) struct CStrings {
    /// What the pointers lead to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

impl CStrings {
    /// Keeps `strings` where they are for as long as `self` lives.
    pub(crate) fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { _strings: strings, pointers }
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Becomes the program at `path`; comes back only when it cannot. Takes no memory, which may be
/// limited by now.
pub(crate) fn execute(path: &CStr, args: &CStrings, env: &CStrings) -> Errno {
    // SAFETY: a nul-terminated path and two arrays of nul-terminated strings that end with a null
    // pointer.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    Errno::last()
}

/// As [`execute`], for a program that is open.
pub(crate) fn execute_open(program: BorrowedFd<'_>, args: &CStrings, env: &CStrings) -> Errno {
    let (program, path) = (program.as_raw_fd(), c"".as_ptr());
    let (args, env, flags) = (args.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: an open descriptor; otherwise as above.
    unsafe { libc::syscall(libc::SYS_execveat, program, path, args, env, flags) };
    Errno::last()
}
