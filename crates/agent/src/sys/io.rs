//! Descriptors in the event loop, and reading into memory that holds nothing yet.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use bytes::{BufMut, BytesMut};
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

/// Puts a descriptor, which must not block, into the event loop.
///
/// # Errors
/// What the kernel said.
///
/// # Panics
/// Outside of the event loop.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` stays open and names the same file for as long as the `AsyncFd` owns it.
    let watched = unsafe { AsyncFd::register(fd) };
    watched.map_err(io::Error::from)
}

/// Appends what one `read(2)` gives to `buffer`; 0 is end of file.
///
/// # Errors
/// What the kernel said; nothing was appended then.
pub(crate) fn read_into(fd: impl AsFd, buffer: &mut BytesMut) -> Result<usize, Errno> {
    let room = buffer.chunk_mut();
    let (start, len) = (room.as_mut_ptr(), room.len());
    // SAFETY: the kernel writes at most `len` bytes from `start`, which is the spare room of
    // `buffer`, borrowed mutably here.
    let read = unsafe { libc::read(fd.as_fd().as_raw_fd(), start.cast(), len) };
    let read = usize::try_from(read).map_err(|_| Errno::last())?;
    // SAFETY: the kernel has initialised the first `read` bytes of the spare room.
    unsafe { buffer.advance_mut(read) };
    Ok(read)
}
