//! The system calls a process may make, as lists, and the filters that enforce them.
//!
//! A VMM has a list of what it may call, and everything else is refused: its work is known, and it is
//! what a guest attacks first. The supervisor has a list of what it may not: it is safe Rust, and what
//! its runtime calls is not ours to say.
//!
//! Refused means `EPERM`, not death. What a call would have done is prevented either way, and a newer C
//! library or QEMU that tries a newer call first and an older one then goes on working; a machine with
//! somebody's data in it is not killed for it.

use std::collections::BTreeMap;
use std::{io, process};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};
use serde::{Deserialize, Serialize};

/// Whose calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Calls {
    /// libkrun, in this process.
    Libkrun {
        /// The shares that it serves, if any.
        sharing: Option<Sharing>,
    },
    /// QEMU, executed by this process next.
    Qemu,
    /// A supervisor that has its VMM still to start.
    Supervisor,
    /// A supervisor whose guest takes commands: it starts no process any more.
    SupervisorAtWork,
}

/// What a VMM that serves shares does with their files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Sharing {
    /// It reads them.
    ReadOnly,
    /// It makes and changes some.
    Writable,
}

/// Filters all threads of this process, and what it executes.
///
/// # Errors
/// What the kernel said.
pub(crate) fn restrict(calls: Calls) -> io::Result<()> {
    for filter in filters(calls)? {
        apply_filter_all_threads(&filter).map_err(io::Error::other)?;
    }
    Ok(())
}

fn filters(calls: Calls) -> io::Result<Vec<BpfProgram>> {
    let (lists, matched, other) = match calls {
        Calls::Libkrun { sharing } => {
            let mut lists = vec![vmm_calls()];
            lists.extend(sharing.map(|_| any(READ_SHARE)));
            lists.extend((sharing == Some(Sharing::Writable)).then(|| any(WRITE_SHARE)));
            (lists, SeccompAction::Allow, refused())
        }
        Calls::Qemu => {
            (vec![vmm_calls(), any(&[libc::SYS_execve])], SeccompAction::Allow, refused())
        }
        Calls::Supervisor => (vec![any(NEVER)], refused(), SeccompAction::Allow),
        Calls::SupervisorAtWork => (vec![new_processes()], refused(), SeccompAction::Allow),
    };
    let mut filters = vec![compile(lists.into_iter().flatten(), other, matched)?];
    if calls != Calls::Supervisor {
        // What `clone3` is to make lies in memory that a filter cannot read. Without it the C library
        // makes threads with `clone`, but only if the kernel seems never to have heard of it. Of two
        // filters' errors the one that was installed last is returned.
        let unheard_of = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        filters.push(compile(any(&[libc::SYS_clone3]), SeccompAction::Allow, unheard_of)?);
    }
    Ok(filters)
}

fn refused() -> SeccompAction {
    SeccompAction::Errno(libc::EPERM.unsigned_abs())
}

/// Calls, each with the conditions of which one must hold; none: it always does.
type List = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(
    rules: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
    other: SeccompAction,
    matched: SeccompAction,
) -> io::Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(rules.into_iter().collect(), other, matched, arch);
    filter.and_then(BpfProgram::try_from).map_err(io::Error::other)
}

fn any(calls: &[i64]) -> List {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

/// A condition on the value of one argument.
fn is(argument: u8, operator: SeccompCmpOp, value: u64) -> SeccompCondition {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .expect("no call has more than six arguments")
}

fn when(conditions: Vec<SeccompCondition>) -> SeccompRule {
    SeccompRule::new(conditions).expect("there is a condition")
}

/// Flags of `clone(2)` that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

const THREAD: u64 = libc::CLONE_THREAD.unsigned_abs() as u64;

/// The lists, put together. `tgkill` names this very process: what is executed keeps its id.
fn vmm_calls() -> List {
    let own_id = u64::from(process::id());
    let thread = is(0, SeccompCmpOp::MaskedEq(THREAD | NEW_NAMESPACES), THREAD);
    let mut list = any(VMM);
    list.insert(libc::SYS_clone, vec![when(vec![thread])]);
    list.insert(libc::SYS_tgkill, vec![when(vec![is(0, SeccompCmpOp::Eq, own_id)])]);
    // Limits are read, of this process.
    let own = is(0, SeccompCmpOp::Eq, 0);
    let not_set = SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)
        .expect("no call has more than six arguments");
    list.insert(libc::SYS_prlimit64, vec![when(vec![own, not_set])]);
    let unix = u64::from(libc::AF_UNIX.unsigned_abs());
    list.insert(libc::SYS_socketpair, vec![when(vec![is(0, SeccompCmpOp::Eq, unix)])]);
    let options = PRCTL.iter().map(|option| {
        let option = u64::from(option.unsigned_abs());
        when(vec![is(0, SeccompCmpOp::Eq, option)])
    });
    list.insert(libc::SYS_prctl, options.collect());
    list
}

/// What only a process that starts others needs. A thread is not one.
fn new_processes() -> List {
    let process = is(0, SeccompCmpOp::MaskedEq(THREAD), 0);
    let mut list = any(&[
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_unshare,
        libc::SYS_landlock_create_ruleset,
    ]);
    #[cfg(target_arch = "x86_64")]
    list.extend(any(&[libc::SYS_fork, libc::SYS_vfork]));
    list.insert(libc::SYS_clone, vec![when(vec![process])]);
    let beyond_unix = is(0, SeccompCmpOp::Ne, u64::from(libc::AF_UNIX.unsigned_abs()));
    list.insert(libc::SYS_socket, vec![when(vec![beyond_unix])]);
    list
}

/// What a VMM may ask of `prctl(2)`: names of threads, its own further confinement, to hear
/// early of broken memory, and the label that newer C libraries give theirs.
const PRCTL: &[libc::c_int] = &[
    libc::PR_SET_NAME,
    libc::PR_SET_TIMERSLACK,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_SET_SECCOMP,
    libc::PR_MCE_KILL,
    libc::PR_SET_VMA,
];

/// What the VMMs call from their first instruction to their end: found with `strace -f` over boot,
/// commands, disk traffic, pause, migration and stop of QEMU 7.2, and what libraries fall back to.
///
/// Not in it, on purpose: making sockets and connecting them, making, removing and renaming files,
/// `io_uring`, `memfd_create`, anything about other processes.
const VMM: &[i64] = &[
    // Descriptors that are open, and files that Landlock lets open.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getcwd,
    libc::SYS_fchdir,
    libc::SYS_getdents64,
    libc::SYS_ioctl,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_fadvise64,
    libc::SYS_pipe2,
    // Memory.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_munlock,
    libc::SYS_membarrier,
    libc::SYS_get_mempolicy,
    libc::SYS_set_mempolicy,
    libc::SYS_mbind,
    // Threads of this process, and its end.
    libc::SYS_clone3,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals to itself.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    libc::SYS_restart_syscall,
    // Waiting and time.
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    // Sockets that it was given.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // What it is and where it runs.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    // Further confinement: QEMU's own filter.
    libc::SYS_seccomp,
    // Older calls that the newer ones above replaced on later architectures.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_dup2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// What libkrun calls beside, to serve a share (`krun-devices`, `virtio/fs/linux/passthrough.rs`).
const READ_SHARE: &[i64] =
    &[libc::SYS_capget, libc::SYS_fgetxattr, libc::SYS_flistxattr, libc::SYS_umask];

/// And to change it. Landlock refuses each of these outside of the share, which is why there is none
/// that changes modes, owners, times or attributes: for those it has no word, and libkrun sends them
/// whatever path they are for.
const WRITE_SHARE: &[i64] = &[
    libc::SYS_copy_file_range,
    libc::SYS_linkat,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_renameat2,
    libc::SYS_symlinkat,
    libc::SYS_unlinkat,
];

/// What neither a supervisor nor anything it starts has any business with.
const NEVER: &[i64] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_adjtimex,
    libc::SYS_bpf,
    libc::SYS_chroot,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kcmp,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_personality,
    libc::SYS_pidfd_getfd,
    libc::SYS_pivot_root,
    libc::SYS_process_madvise,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_ptrace,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setdomainname,
    libc::SYS_sethostname,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_syslog,
    libc::SYS_umount2,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_becomes_a_filter() {
        let libkrun = [None, Some(Sharing::ReadOnly), Some(Sharing::Writable)]
            .map(|sharing| Calls::Libkrun { sharing });
        let others = [Calls::Qemu, Calls::Supervisor, Calls::SupervisorAtWork];
        for calls in libkrun.into_iter().chain(others) {
            assert!(filters(calls).is_ok_and(|filters| !filters.is_empty()), "{calls:?}");
        }
    }

    #[test]
    fn nothing_is_both_a_vmms_business_and_nobodys() {
        let all = VMM.iter().chain(READ_SHARE).chain(WRITE_SHARE);
        let both: Vec<_> = all.filter(|call| NEVER.contains(call)).collect();
        assert!(both.is_empty(), "{both:?}");
    }
}
