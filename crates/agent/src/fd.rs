//! Descriptors that never block, in the event loop: writing to them, and pipes that hold more.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::write;
use tokio::io::unix::AsyncFd;

/// Writes what `to` takes of `bytes`, waiting until it takes some.
///
/// # Errors
/// What the kernel said.
pub(crate) async fn write_some(to: &AsyncFd<OwnedFd>, bytes: &[u8]) -> Result<usize, Errno> {
    write_with(to, |to| write(to, bytes)).await
}

/// As [`write_some`], with the call that writes.
///
/// # Errors
/// What the kernel said.
pub(crate) async fn write_with(
    to: &AsyncFd<OwnedFd>,
    write: impl Fn(&OwnedFd) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    loop {
        match write(to.get_ref()) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let Ok(mut ready) = to.writable().await else { return Err(Errno::EIO) };
                // It may have become writable since: only a refusal proves that it is not.
                if let Ok(result) = ready.try_io(|to| Ok(write(to.get_ref())?)) {
                    return result.map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO));
                }
            }
            result => return result,
        }
    }
}

/// Bytes that a pipe holds unless it is asked to hold more (`PIPE_DEF_BUFFERS` in `pipe_fs_i.h`).
pub(crate) const PIPE_BYTES: usize = 64 << 10;

/// Bytes that a pipe holds through which much goes.
///
/// Each time one is full or empty the processor goes over to the other end, which costs as much as
/// moving tens of kilobytes. More than this gains nothing.
const WIDE_BYTES: i32 = 512 << 10;

/// Has a pipe hold more, once, for it is bulk that goes through it. A pipe that hardly anything goes
/// through is spared the call; what is no pipe stays as it is.
#[derive(Debug, Default)]
pub(crate) struct Widen(Cell<bool>);

impl Widen {
    /// The pipe was found full.
    pub(crate) fn filled(&self, pipe: impl AsFd) {
        if !self.0.replace(true) {
            // Fails for a terminal, and where the kernel has no memory for it.
            let _as_it_was = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(WIDE_BYTES));
        }
    }
}
