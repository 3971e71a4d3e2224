//! Handing a child process its configuration and descriptors over a socket.
//!
//! `len u32 LE | JSON`, the descriptors attached to the first byte (`SCM_RIGHTS`, `unix(7)`). The
//! socket is the child's standard input, so no descriptor number is agreed upon and nothing shows
//! in `/proc/*/cmdline` or `environ`.
//!
//! The JSON is `{"build": …, "role": …, "order": …}`. The first two are read before the third: what
//! an order looks like is known only to programs of the same build, and any other refuses it.

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{program::Role, sys};

/// This build: its version, `+`, and a digest of the sources in 16 hex digits.
///
/// The processes of one sandbox must all be of one build.
pub const BUILD: &str = env!("MSB_BUILD");

/// [`BUILD`], in one piece: the compiler would spread a constant over its instructions, and a test
/// finds the name in a program and changes it there.
pub(crate) fn this_build() -> &'static str {
    std::hint::black_box(BUILD)
}

/// Most descriptors in one hand-over: a few of the process's own, and one for each device.
const MAX_FDS: usize = 16;

/// Largest configuration accepted: environment and all.
const MAX_LEN: u32 = 8 << 20;

/// Why a process does not take what it was started with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it was started by microsandbox {theirs}, but is {BUILD}")]
    Build { theirs: String },
    #[error("{came} descriptors came with its orders instead of {expected}")]
    Descriptors { came: usize, expected: usize },
    #[error("it was given orders for the role {theirs:?}")]
    Role { theirs: String },
    #[error("it reads its orders from the socket that its launcher made: {0}")]
    Socket(#[source] io::Error),
}

/// The part that every build writes and reads alike.
#[derive(Deserialize)]
struct Head {
    build: String,
    role: String,
}

#[derive(Deserialize)]
struct Body<T> {
    order: T,
}

#[derive(Serialize)]
struct Letter<'a, T> {
    build: &'a str,
    role: &'a str,
    order: &'a T,
}

/// Sends a process in `role` its `order` and copies of `fds`.
pub(crate) fn send<T: Serialize>(
    mut socket: &UnixStream,
    role: Role,
    order: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let letter = Letter { build: BUILD, role: role.argv0(), order };
    let body = serde_json::to_vec(&letter)?;
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

/// Receives what [`send`] sent to this role, with exactly `N` descriptors. Blocks until all of it
/// has come.
pub(crate) fn receive<T: DeserializeOwned, const N: usize>(
    socket: &UnixStream,
    role: Role,
) -> Result<(T, [OwnedFd; N]), Refusal> {
    let (order, fds) = receive_counted(socket, role, |_| N)?;
    Ok((order, fds.try_into().expect("as many came as were expected")))
}

/// As [`receive`], with as many descriptors as the order says.
pub(crate) fn receive_counted<T: DeserializeOwned>(
    socket: &UnixStream,
    role: Role,
    expected: impl FnOnce(&T) -> usize,
) -> Result<(T, Vec<OwnedFd>), Refusal> {
    let (body, fds) = receive_bytes(socket).map_err(Refusal::Socket)?;
    let unreadable = |error: serde_json::Error| Refusal::Socket(error.into());
    let head: Head = serde_json::from_slice(&body).map_err(unreadable)?;
    if head.build != this_build() {
        return Err(Refusal::Build { theirs: head.build });
    }
    if head.role != role.argv0() {
        return Err(Refusal::Role { theirs: head.role });
    }
    let Body { order }: Body<T> = serde_json::from_slice(&body).map_err(unreadable)?;
    let expected = expected(&order);
    if fds.len() != expected {
        return Err(Refusal::Descriptors { came: fds.len(), expected });
    }
    Ok((order, fds))
}

fn receive_bytes(mut socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
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
    Ok((body, fds))
}

#[cfg(test)]
mod tests {
    use std::io::Seek;

    use super::*;

    #[test]
    fn order_and_descriptors_arrive_together() {
        let (here, there) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"through").unwrap();
        send(&here, Role::Vmm, &"hello", &[file.as_fd()]).unwrap();
        let (order, [same]): (String, _) = receive(&there, Role::Vmm).unwrap();
        assert_eq!(order, "hello");
        let mut same = std::fs::File::from(same);
        same.rewind().unwrap();
        let mut text = String::new();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn what_is_not_meant_for_this_process_is_refused_by_name() {
        let answer = |body: &str, fds: &[BorrowedFd<'_>]| {
            let (mut here, there) = UnixStream::pair().unwrap();
            let order: String = serde_json::from_str(body).unwrap_or_default();
            if order.is_empty() {
                here.write_all(&u32::try_from(body.len()).unwrap().to_le_bytes()).unwrap();
                here.write_all(body.as_bytes()).unwrap();
            } else {
                send(&here, Role::Supervisor, &order, fds).unwrap();
            }
            drop(here);
            receive::<String, 0>(&there, Role::Vmm).unwrap_err().to_string()
        };
        // Another build is told apart even where its orders look different.
        let other = answer(r#"{"build":"9.9.9+1","role":"msb-vmm","order":{"new":[1]}}"#, &[]);
        assert_eq!(other, format!("it was started by microsandbox 9.9.9+1, but is {BUILD}"));
        let role = answer("\"go\"", &[]);
        assert_eq!(role, "it was given orders for the role \"msb-supervisor\"");
        assert!(answer("{}", &[]).contains("missing field"), "no head");
        assert!(answer("", &[]).contains("reads its orders from the socket"), "hang-up");
    }

    #[test]
    fn other_than_the_expected_number_of_descriptors_is_refused() {
        let (here, there) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&here, Role::Vmm, &(), &[file.as_fd(), file.as_fd()]).unwrap();
        let refusal = receive::<(), 1>(&there, Role::Vmm).unwrap_err();
        assert_eq!(refusal.to_string(), "2 descriptors came with its orders instead of 1");
    }
}
