//! Starting a process: one `clone3`, and what the child does until `execve`.
//!
//! The child borrows the agent's memory while the agent sleeps in the call (`CLONE_VM | CLONE_VFORK`):
//! nothing is copied, and the child reports a failure by storing it. It runs on a stack of its own,
//! makes system calls on data prepared before, allocates nothing, takes no lock and cannot panic.

use std::arch::asm;
use std::ffi::{CStr, CString};
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;

use libc::{c_char, c_int, c_long, c_void};
use nix::errno::Errno;

/// Everything about a process that is decided before it exists.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// Become descriptors 0, 1 and 2; none of them may be one of those now.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Whether `stdio[0]` is a terminal that becomes the controlling one.
    pub controlling_terminal: bool,
    /// Directory of the cgroup v2 the process is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Limits, by resource number.
    pub rlimits: &'a [(c_int, libc::rlimit64)],
    /// Whom to become; none: whoever the agent is.
    pub identity: Option<&'a Identity>,
    /// Directory to start in, entered as that user.
    pub cwd: &'a CStr,
    /// The file to execute.
    pub image: Image<'a>,
    /// Arguments, the program's name first.
    pub args: &'a CStrings,
    /// Environment as `NAME=value`.
    pub env: &'a CStrings,
}

/// User and groups of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub uid: libc::uid_t,
    pub gid: libc::gid_t,
    /// Supplementary groups.
    pub groups: Vec<libc::gid_t>,
}

/// The file to execute.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Image<'a> {
    /// The first of these paths that exists, as `execvp(3)` searches.
    Search(&'a [CString]),
    /// An open file.
    Open(BorrowedFd<'a>),
}

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Creating it.
    Clone,
    /// Leaving the agent's session.
    Session,
    /// Taking the controlling terminal.
    Terminal,
    /// Putting standard input, output and error in place.
    Stdio,
    /// Setting the limit with this index.
    Limit(usize),
    /// Taking on user and groups.
    Identity,
    /// Entering the working directory.
    Directory,
    /// Executing the file.
    Execute,
}

/// A process that could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("start a process: {step:?}")]
pub(crate) struct SpawnFailed {
    /// What it was doing.
    pub step: Step,
    /// What the kernel said.
    #[source]
    pub errno: Errno,
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

/// Starts processes, one at a time.
#[derive(Debug)]
pub(crate) struct Spawner {
    stack: Box<[StackWord]>,
}

/// Stacks are aligned to 16 bytes at calls (System V ABI for x86_64, AAPCS64).
#[derive(Debug, Clone, Copy)]
#[repr(C, align(16))]
struct StackWord([u64; 2]);

/// The child nests a handful of small frames; unoptimised ones fit many times over.
const STACK_WORDS: usize = (64 << 10) / size_of::<StackWord>();

impl Spawner {
    /// A spawner with a stack for its children.
    pub(crate) fn new() -> Self {
        Self { stack: vec![StackWord([0; 2]); STACK_WORDS].into_boxed_slice() }
    }

    /// Starts a process and returns once it executes its file, or could not.
    ///
    /// A child that failed half way has exited and waits to be reaped like any other.
    ///
    /// # Errors
    /// [`SpawnFailed`] with the step and what the kernel said.
    pub(crate) fn spawn(&mut self, spawn: &Spawn<'_>) -> Result<libc::pid_t, SpawnFailed> {
        let mut child = Child { spawn, failed: None };
        let args = CloneArgs {
            flags: CLONE_FLAGS | if spawn.cgroup.is_some() { CLONE_INTO_CGROUP } else { 0 },
            exit_signal: libc::SIGCHLD as u64,
            stack: self.stack.as_mut_ptr() as u64,
            stack_size: size_of_val(&*self.stack) as u64,
            cgroup: spawn.cgroup.map_or(0, |dir| u64::from(dir.as_raw_fd().unsigned_abs())),
            ..CloneArgs::default()
        };
        // SAFETY: `clone3_vfork` requires that
        // - `stack` and `stack_size` name writable, 16-byte aligned memory that nobody else uses:
        //   they are the boxed slice, borrowed mutably for the call;
        // - `entry` never returns: `run_child` is `-> !`;
        // - `argument` is what `entry` expects and outlives the call: it is `child`, above.
        let result = unsafe { clone3_vfork(&args, run_child, (&raw mut child).cast()) };
        let failed = |step, errno| SpawnFailed { step, errno: Errno::from_raw(errno) };
        let pid = i32::try_from(result).unwrap_or(i32::MIN);
        match child.failed {
            _ if pid < 0 => Err(failed(Step::Clone, -pid)),
            Some((step, errno)) => Err(failed(step, errno)),
            None => Ok(pid),
        }
    }
}

/// What the child reads and where it stores why it failed.
struct Child<'a> {
    spawn: &'a Spawn<'a>,
    failed: Option<(Step, c_int)>,
}

/// `CLONE_CLEAR_SIGHAND` (Linux 5.5): no handler of the agent can run in the child, which would
/// corrupt the memory they share.
const CLONE_FLAGS: u64 = libc::CLONE_VM as u64 | libc::CLONE_VFORK as u64 | 0x1_0000_0000;
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

/// Makes a child that shares this memory and enters `entry(argument)` on the stack in `args`, while
/// the caller waits until it executes a file or exits. Gives its pid, or a negative error number.
///
/// The child leaves this frame untouched: it goes from the system call to `entry` in registers.
///
/// # Safety
/// - `args` sets `CLONE_VM`, `CLONE_VFORK` and a stack nobody else uses, 16-byte aligned at both ends;
/// - `entry` does not return and calls nothing that takes a lock, allocates or unwinds;
/// - `argument` is what `entry` expects.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_vfork(
    args: &CloneArgs,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let result: c_long;
    // SAFETY: the kernel preserves all registers but rax, rcx and r11, which are declared; in the
    // parent nothing else runs. In the child rsp is the top of its own stack, aligned to 16 before
    // the call as the ABI wants, and control never leaves `entry`.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// As for x86_64.
///
/// # Safety
/// As for x86_64.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_vfork(
    args: &CloneArgs,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> c_long {
    let result: c_long;
    // SAFETY: the kernel preserves all registers but x0; in the parent nothing else runs. In the
    // child sp is the top of its own stack, aligned to 16, and control never leaves `entry`.
    unsafe {
        asm!(
            "svc #0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk #1",
            "2:",
            in("x8") libc::SYS_clone3,
            inlateout("x0") args as *const CloneArgs => result,
            in("x1") size_of::<CloneArgs>(),
            in("x20") argument,
            in("x21") entry,
        );
    }
    result
}

/// Entry of the child.
///
/// # Safety
/// `child` points to a [`Child`] whose owner waits until this process executes a file or exits.
unsafe extern "C" fn run_child(child: *mut c_void) -> ! {
    // SAFETY: it is a `Child`, and the thread that owns it is suspended by `CLONE_VFORK`.
    let child = unsafe { &mut *child.cast::<Child<'_>>() };
    child.failed = Some(child.spawn.become_program());
    // SAFETY: ends this process only; no destructor of the shared memory runs.
    unsafe { libc::_exit(127) }
}

/// The error number of the call that has just failed.
fn errno() -> c_int {
    Errno::last_raw()
}

/// Turns `-1` into the step that failed.
fn check(result: c_int, step: Step) -> Result<(), (Step, c_int)> {
    if result < 0 { Err((step, errno())) } else { Ok(()) }
}

impl Spawn<'_> {
    /// Runs in the child; returns only when something failed.
    fn become_program(&self) -> (Step, c_int) {
        let prepared = self
            .leave_session()
            .and_then(|()| self.place_stdio())
            .and_then(|()| self.limit())
            .and_then(|()| self.take_identity())
            .and_then(|()| self.enter_directory())
            .and_then(|()| unblock_signals());
        match prepared {
            Ok(()) => (Step::Execute, self.execute()),
            Err(failed) => failed,
        }
    }

    fn leave_session(&self) -> Result<(), (Step, c_int)> {
        // SAFETY: no arguments.
        check(unsafe { libc::setsid() }, Step::Session)?;
        if self.controlling_terminal {
            let terminal = self.stdio[0].as_raw_fd();
            // SAFETY: the argument of TIOCSCTTY is an integer; 0 steals from nobody.
            check(unsafe { libc::ioctl(terminal, libc::TIOCSCTTY, 0) }, Step::Terminal)?;
        }
        Ok(())
    }

    fn place_stdio(&self) -> Result<(), (Step, c_int)> {
        for (target, source) in (0..).zip(self.stdio) {
            // SAFETY: plain descriptors; `dup2` clears the close-on-exec flag of the copy.
            check(unsafe { libc::dup2(source.as_raw_fd(), target) }, Step::Stdio)?;
        }
        Ok(())
    }

    fn limit(&self) -> Result<(), (Step, c_int)> {
        for (index, (resource, limit)) in self.rlimits.iter().enumerate() {
            let (this, none) = (0, ptr::null_mut::<c_void>());
            // SAFETY: `prlimit64` reads one `rlimit64` from `limit`, a reference, and stores no
            // old value because the last pointer is null.
            let result = unsafe {
                libc::syscall(libc::SYS_prlimit64, this, *resource, &raw const *limit, none)
            };
            if result < 0 {
                return Err((Step::Limit(index), errno()));
            }
        }
        Ok(())
    }

    /// By raw system calls: the C library's own change every thread of the process, and take locks.
    fn take_identity(&self) -> Result<(), (Step, c_int)> {
        let Some(identity) = self.identity else { return Ok(()) };
        let Identity { uid, gid, groups } = identity;
        // SAFETY: reads `groups.len()` ids from the slice.
        let groups = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
        if groups < 0 {
            return Err((Step::Identity, errno()));
        }
        // SAFETY: takes integers only.
        let group = unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) };
        if group < 0 {
            return Err((Step::Identity, errno()));
        }
        // SAFETY: takes integers only.
        let user = unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) };
        if user < 0 {
            return Err((Step::Identity, errno()));
        }
        Ok(())
    }

    fn enter_directory(&self) -> Result<(), (Step, c_int)> {
        // SAFETY: a `CStr` ends with a nul byte.
        check(unsafe { libc::chdir(self.cwd.as_ptr()) }, Step::Directory)
    }

    /// Gives the error number that says most about why no file could be executed.
    fn execute(&self) -> c_int {
        let (args, env) = (self.args.as_ptr(), self.env.as_ptr());
        let paths = match self.image {
            Image::Search(paths) => paths,
            Image::Open(file) => {
                let (file, path): (RawFd, _) = (file.as_raw_fd(), c"".as_ptr());
                // SAFETY: an open descriptor, a nul-terminated path and two arrays of
                // nul-terminated strings that end with a null pointer.
                unsafe {
                    libc::syscall(libc::SYS_execveat, file, path, args, env, libc::AT_EMPTY_PATH)
                };
                return errno();
            }
        };
        let mut worst = libc::ENOENT;
        for path in paths {
            // SAFETY: as above.
            unsafe { libc::execve(path.as_ptr(), args, env) };
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                // Another directory may hold one that may be run.
                libc::EACCES => worst = libc::EACCES,
                other => return other,
            }
        }
        worst
    }
}

/// The agent blocks what it reads from a descriptor; programs expect nothing blocked.
fn unblock_signals() -> Result<(), (Step, c_int)> {
    let mut none = mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: writes one signal set.
    unsafe { libc::sigemptyset(none.as_mut_ptr()) };
    // SAFETY: reads the set initialised above; no old set is asked for.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut()) };
    check(result, Step::Session)
}
