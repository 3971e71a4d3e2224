//! Handing a child process its configuration and descriptors over a socket.
//!
//! `len u32 LE | JSON`, the descriptors attached to the first byte (`SCM_RIGHTS`, `unix(7)`). The
//! socket is the child's standard input, so no descriptor number is agreed upon and nothing shows
//! in `/proc/*/cmdline` or `environ`.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Serialize, de::DeserializeOwned};

use crate::sys;

/// Most descriptors in one hand-over; a launch has one, a VM at most this many.
const MAX_FDS: usize = 16;

/// Largest configuration accepted: environment and all.
const MAX_LEN: u32 = 8 << 20;

/// Sends `config` and copies of `fds`.
pub(crate) fn send<T: Serialize>(
    mut socket: &UnixStream,
    config: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = serde_json::to_vec(config)?;
    let len = u32::try_from(body.len()).ok().filter(|len| *len <= MAX_LEN);
    let len = len.ok_or_else(|| io::Error::other("configuration exceeds 8 MiB"))?.to_le_bytes();
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&len)],
        rights,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    socket.write_all(&len[sent..])?;
    socket.write_all(&body)
}

/// Receives what [`send`] sent. Blocks until all of it has come.
pub(crate) fn receive<T: DeserializeOwned>(
    mut socket: &UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut len = [0; 4];
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (received, fds) = {
        let mut parts = [IoSliceMut::new(&mut len)];
        let message = recvmsg::<()>(
            socket.as_fd().as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(sys::own_received_fds(raw));
            }
        }
        (message.bytes, fds)
    };
    socket.read_exact(&mut len[received..])?;
    let len = u32::from_le_bytes(len);
    if len > MAX_LEN {
        return Err(io::Error::other("configuration exceeds 8 MiB"));
    }
    let mut body = vec![0; len as usize];
    socket.read_exact(&mut body)?;
    Ok((serde_json::from_slice(&body)?, fds))
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    #[test]
    fn config_and_descriptors_arrive_together() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through").unwrap();
        send(&here, &"hello", &[file.as_fd()]).unwrap();
        let (config, mut fds): (String, _) = receive(&there).unwrap();
        assert_eq!((config.as_str(), fds.len()), ("hello", 1));
        let mut same = std::fs::File::from(fds.remove(0));
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn hang_up_before_the_config_is_an_error() {
        let (here, there) = UnixStream::pair().unwrap();
        drop(here);
        assert!(receive::<String>(&there).is_err());
    }
}
