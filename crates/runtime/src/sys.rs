//! The unsafe corner of this crate: descriptors received from another process, and libkrun.
#![expect(unsafe_code, reason = "the one module of the crate where syscalls and FFI need it")]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

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
