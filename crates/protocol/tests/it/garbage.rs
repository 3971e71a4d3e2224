//! Whatever a peer sends is refused or read, and never more than that.

use bytes::Bytes;
use microsandbox_protocol::{
    BootFailed, Bootstrap, Concluded, Credit, Ended, Exec, ExecExited, ExecFailed, ExecStarted,
    FileCall, Frame, FrameDecoder, Hello, JobAttached, JobCall, JobDetails, JobInfo, Jobs,
    LimitedExec, MAX_FRAME_LEN, Message, Ready, Resize, Shutdown, Signal, StdinClosed, Unsupported,
    Welcome,
};
use proptest::prelude::*;

/// Reads a body as every message there may be; what can be read can be written again.
fn read_as_everything(frame: &Frame) {
    fn read<M: Message>(frame: &Frame) {
        let frame = Frame { kind: M::KIND.byte(), ..frame.clone() };
        if let Ok(message) = M::from_frame(&frame) {
            let written = message.to_frame(frame.stream);
            assert!(M::from_frame(&written).is_ok());
        }
    }
    let _hello = Hello::from_frame(frame);
    for read in [
        read::<BootFailed>,
        read::<Bootstrap>,
        read::<Concluded>,
        read::<Credit>,
        read::<Ended>,
        read::<Exec>,
        read::<ExecExited>,
        read::<ExecFailed>,
        read::<ExecStarted>,
        read::<FileCall>,
        read::<JobAttached>,
        read::<JobCall>,
        read::<JobDetails>,
        read::<JobInfo>,
        read::<Jobs>,
        read::<LimitedExec>,
        read::<Ready>,
        read::<Resize>,
        read::<Shutdown>,
        read::<Signal>,
        read::<StdinClosed>,
        read::<Unsupported>,
        read::<Welcome>,
    ] {
        read(frame);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_body_makes_a_reader_panic(
        stream: u32,
        flags: u8,
        body in prop::collection::vec(prop_oneof![Just(0), Just(0xff), any::<u8>()], 0..96),
    ) {
        read_as_everything(&Frame { stream, kind: 0, flags, body: Bytes::from(body) });
    }

    #[test]
    fn no_stream_of_bytes_makes_the_decoder_keep_more_than_a_frame(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..64),
        plausible: bool,
    ) {
        let mut decoder = FrameDecoder::default();
        for mut piece in pieces {
            if plausible && piece.len() >= 4 {
                // A length that may be right, so that frames come through.
                piece[1..4].fill(0);
            }
            decoder.buffer().extend_from_slice(&piece);
            prop_assert!(decoder.buffer().capacity() <= 2 * (MAX_FRAME_LEN as usize + 4));
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => read_as_everything(&frame),
                    Ok(None) => break,
                    Err(_) => return Ok(()),
                }
            }
        }
    }
}
