//! A door for the fuzzer to what a guest and its clients say to the relay. Behind the feature `fuzz`; no
//! part of the API.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::BytesMut;
use microsandbox_protocol::{
    BootTimings, Credit, Exec, Frame, FrameDecoder, Kind, LimitedExec, Message, Ready, StreamId,
    opening_window,
};
use tokio::{io::AsyncWrite, task::yield_now};

use super::relay::{ClientId, Relay, owner};
use crate::link::FrameSender;

/// Flag, which no peer sends, of frames that come from the client: the others are the guest's.
const FROM_CLIENT: u8 = 1 << 7;

/// Plays a relay the frames of a guest and of one client, and says how that ended.
///
/// # Panics
/// When more of the guest's bytes reach the client than it has granted, when what reaches either is no
/// frame, or when a client that is dropped leaves something behind.
pub fn relay(bytes: &[u8]) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("there can be an event loop").block_on(play(bytes))
}

async fn play(bytes: &[u8]) -> String {
    let (to_guest, to_client) = (Written::default(), Written::default());
    let mut relay = Relay::new(FrameSender::start(to_guest.clone()), ready(), None);
    let client = relay.add_client(to_client.clone()).expect("it is the first");
    let mut granted = HashMap::new();
    let mut frames = FrameDecoder::default();
    frames.buffer().extend_from_slice(bytes);
    let end = loop {
        let mut frame = match frames.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break "all was taken".to_owned(),
            Err(error) => break error.to_string(),
        };
        let from_client = frame.flags & FROM_CLIENT != 0;
        frame.flags &= !FROM_CLIENT;
        if from_client {
            let grant = (frame.stream, grant(&frame));
            if let Err(lie) = relay.on_client(client, frame) {
                relay.remove_client(client);
                assert!(relay.is_idle(), "a client that was dropped leaves nothing");
                break format!("client: {lie:?}");
            }
            *granted.entry(grant.0).or_default() += grant.1;
        } else if let Err(lie) = relay.on_guest(frame) {
            break format!("guest: {lie:?}");
        }
    };
    drop(relay);
    // What was queued is written now.
    for _ in 0..4 {
        yield_now().await;
    }
    let heard =
        [judged(&to_guest, |_| {}), judged(&to_client, |frame| spend(&mut granted, frame, client))];
    let end: String = end.chars().filter(|c| !c.is_ascii_digit()).collect();
    format!("{end}, guest heard {:?}, client {:?}", heard[0], heard[1])
}

/// Bytes that a frame of the client lets the guest send.
fn grant(frame: &Frame) -> u64 {
    let window = match Kind::from_byte(frame.kind) {
        Some(Kind::Credit) => Credit::from_frame(frame).map(|credit| credit.bytes),
        Some(Kind::Exec) => Exec::from_frame(frame).map(|exec| exec.window),
        Some(Kind::LimitedExec) => LimitedExec::from_frame(frame).map(|it| it.exec.window),
        Some(Kind::FileCall | Kind::JobCall) => opening_window(frame),
        _ => return 0,
    };
    window.map_or(0, u64::from)
}

fn spend(granted: &mut HashMap<StreamId, u64>, frame: &Frame, client: ClientId) {
    assert!(frame.stream == 0 || owner(frame.stream) == client, "frames of somebody else");
    if matches!(Kind::from_byte(frame.kind), Some(Kind::Stdout | Kind::Stderr)) {
        let left = granted.get_mut(&frame.stream).expect("output of a stream that was opened");
        *left = left.checked_sub(frame.body.len() as u64).expect("no more than was granted");
    }
}

/// The kinds that were written, each looked at.
fn judged(written: &Written, mut look: impl FnMut(&Frame)) -> BTreeSet<u8> {
    let mut frames = FrameDecoder::default();
    *frames.buffer() = std::mem::take(&mut *written.bytes());
    let mut kinds = BTreeSet::new();
    while let Some(frame) = frames.next_frame().expect("the relay sends frames") {
        look(&frame);
        kinds.insert(frame.kind);
    }
    assert!(frames.is_empty(), "the last frame is whole");
    kinds
}

fn ready() -> Ready {
    Ready {
        agent_version: String::new(),
        kernel_release: String::new(),
        timings: BootTimings::default(),
    }
}

/// Keeps what is written to it.
#[derive(Debug, Clone, Default)]
struct Written(Arc<Mutex<BytesMut>>);

impl Written {
    fn bytes(&self) -> std::sync::MutexGuard<'_, BytesMut> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncWrite for Written {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.bytes().extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
