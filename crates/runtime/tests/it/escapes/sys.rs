//! System calls that no safe wrapper offers, because nobody should make them.
#![expect(unsafe_code, reason = "what a prisoner tries is not what wrappers are made for")]

use std::{
    ffi::{CString, c_long},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr,
};

/// Makes any call; gives the error number, 0 for success. Descriptors it makes are left open.
pub(super) fn call(number: c_long, arguments: [u64; 5]) -> i32 {
    let [a, b, c, d, e] = arguments;
    // SAFETY: the callers of this module pass numbers that are no addresses, null, or addresses of
    // what lives longer than the call; what the kernel does with the process is what is tested.
    let result = unsafe { libc::syscall(number, a, b, c, d, e) };
    if result < 0 { errno() } else { 0 }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// The path as an argument; it is never freed.
pub(super) fn path(path: impl AsRef<Path>) -> u64 {
    let path = CString::new(path.as_ref().as_os_str().as_bytes()).expect("paths have no NUL");
    CString::into_raw(path).expose_provenance() as u64
}

/// Memory that a call may read and write; it is never freed.
pub(super) fn buffer() -> u64 {
    Box::leak(Box::new([0_u64; 512])).as_mut_ptr().expose_provenance() as u64
}

/// A child that ends at once.
pub(super) fn fork() -> i32 {
    // SAFETY: the child does nothing but end itself.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        0 => end(),
        child if child < 0 => errno(),
        _ => 0,
    }
}

/// Executes a file that is no program: reaching that is success.
pub(super) fn execute(file: u64) -> i32 {
    let null = [ptr::null::<u8>()];
    let null = null.as_ptr().expose_provenance() as u64;
    match call(libc::SYS_execve, [file, null, null, 0, 0]) {
        libc::ENOEXEC => 0,
        errno => errno,
    }
}

/// Whether something is there, without opening it.
#[cfg_attr(not(feature = "stop-at-step"), expect(dead_code, reason = "asked in place of libkrun"))]
pub(super) fn exists(file: &Path) -> bool {
    call(libc::SYS_faccessat, [i64::from(libc::AT_FDCWD).cast_unsigned(), path(file), 0, 0, 0]) == 0
}

/// Ends the process without a word.
pub(super) fn end() -> ! {
    // SAFETY: ends the process; nothing of it is needed any more.
    unsafe { libc::_exit(1) }
}

/// System V shared memory that any process of the user can find by its key.
#[derive(Debug)]
pub(super) struct SharedMemory {
    key: i32,
    id: i32,
}

impl SharedMemory {
    pub(super) fn make() -> io::Result<Self> {
        for key in (std::process::id().cast_signed()..).step_by(7919).take(64) {
            let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o600;
            // SAFETY: takes integers only.
            let id = unsafe { libc::shmget(key, 4096, flags) };
            if id >= 0 {
                return Ok(Self { key, id });
            }
        }
        Err(io::Error::last_os_error())
    }

    pub(super) fn key(&self) -> i32 {
        self.key
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: removes what `make` made; takes no buffer for this command.
        unsafe { libc::shmctl(self.id, libc::IPC_RMID, ptr::null_mut()) };
    }
}
