//! Calls for which there is no safe wrapper: what the kernel has, and work between fork and exec.

use std::{
    ffi::{CStr, OsStr},
    fs, io,
    os::{
        fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::PathBuf,
    process::Command,
    ptr,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, fcntl},
};

/// Version of the kernel's Landlock interface (`landlock_create_ruleset(2)`).
pub(crate) fn landlock_abi() -> Option<u32> {
    /// `LANDLOCK_CREATE_RULESET_VERSION` of `linux/landlock.h`.
    const VERSION: u32 = 1;
    let (none, size) = (ptr::null::<u8>(), 0_usize);
    // SAFETY: with this flag the call takes no attributes and only answers with a number.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, none, size, VERSION) };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}

/// Whether the kernel filters system calls, and lets a filter answer with an error (`seccomp(2)`).
pub(crate) fn seccomp_available() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the call reads one `u32` from a reference to one, and changes nothing.
    let answer = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    answer == 0
}

/// Paths of the libraries in this process, and of the loader that put them there.
pub(crate) fn loaded_objects() -> Vec<PathBuf> {
    /// Adds the path of one object.
    ///
    /// # Safety
    /// `info` is what `dl_iterate_phdr` passes, and `paths` a `Vec<PathBuf>` nobody else uses.
    unsafe extern "C" fn add(
        info: *mut libc::dl_phdr_info,
        _size: libc::size_t,
        paths: *mut libc::c_void,
    ) -> libc::c_int {
        // SAFETY: the caller passes a description that it fills in and that lives during this call.
        let name = unsafe { (*info).dlpi_name };
        // SAFETY: the name of a loaded object is a string that ends in NUL (dl_iterate_phdr(3)).
        let name = unsafe { CStr::from_ptr(name) };
        // SAFETY: by this function's contract.
        let paths = unsafe { &mut *paths.cast::<Vec<PathBuf>>() };
        // The program itself has no name, and what the kernel provides has no path.
        if name.to_bytes().starts_with(b"/") {
            paths.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
        }
        0
    }
    let mut paths: Vec<PathBuf> = Vec::new();
    // SAFETY: `add` is called during this call only, with a pointer to `paths`, which nothing else
    // uses meanwhile.
    unsafe { libc::dl_iterate_phdr(Some(add), (&raw mut paths).cast()) };
    paths
}

/// Has `hook` run in the child between fork and exec.
///
/// It must make system calls only, on what was prepared before: the child is a copy of one thread of
/// a process whose other threads may have held locks.
pub(crate) fn before_exec(
    command: &mut Command,
    hook: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the hooks of this crate are in `confine::process`; they neither allocate nor lock, which
    // is what `pre_exec` requires.
    unsafe { command.pre_exec(hook) };
}

/// Marks every descriptor from `first` up to be closed when a program is executed (Linux 5.11).
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    /// `CLOSE_RANGE_CLOEXEC` of `linux/close_range.h`.
    const CLOEXEC: u32 = 1 << 2;
    // SAFETY: sets flags of descriptors; none is closed, so none that somebody owns goes away.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes what this process was started with beside its standard streams. For the start of a role.
///
/// Whoever started the facade may have left it descriptors that stay open when a program is executed;
/// a supervisor would keep a pipe or a lock of theirs for as long as it runs.
pub(crate) fn close_inherited() -> io::Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(fd) = entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        if fd <= libc::STDERR_FILENO || is_closed_by_exec(fd) {
            continue;
        }
        // SAFETY: a descriptor that survives exec was there before this program began: everything
        // that Rust's standard library and our dependencies open is closed by it, so nothing in this
        // process owns this one.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
    }
    Ok(())
}

/// Also true for one that is not open.
fn is_closed_by_exec(fd: RawFd) -> bool {
    // SAFETY: the descriptor is only asked for its flags; if it is not open, that is the answer.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    match fcntl(fd, FcntlArg::F_GETFD) {
        Ok(flags) => FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC),
        Err(Errno::EBADF) => true,
        Err(_) => false,
    }
}
