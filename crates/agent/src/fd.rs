//! Writing to descriptors that never block, from the event loop.

use std::os::fd::OwnedFd;

use nix::errno::Errno;
use nix::unistd::write;
use tokio::io::unix::AsyncFd;

/// Writes what `to` takes of `bytes`, waiting until it takes some.
///
/// # Errors
/// What the kernel said.
pub(crate) async fn write_some(to: &AsyncFd<OwnedFd>, bytes: &[u8]) -> Result<usize, Errno> {
    loop {
        match write(to, bytes) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let Ok(mut ready) = to.writable().await else { return Err(Errno::EIO) };
                // It may have become writable since: only a refusal proves that it is not.
                if let Ok(result) = ready.try_io(|to| Ok(write(to, bytes)?)) {
                    return result.map_err(|error| Errno::try_from(error).unwrap_or(Errno::EIO));
                }
            }
            result => return result,
        }
    }
}
