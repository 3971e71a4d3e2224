//! Credit: how many bulk bytes may be under way on a stream.
//!
//! The receiver grants bytes, the sender spends them, nobody sends what was not granted. A receiver
//! that stops reading stops granting, and so stops its own sender and nobody else.

/// The peer sent more than it was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("accept {sent} bulk bytes: the stream has credit for {left}")]
pub struct WindowExceeded {
    /// Bytes the peer sent.
    pub sent: u64,
    /// Bytes it had left to send.
    pub left: u64,
}

/// The sender's side: what may still be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendWindow {
    left: u64,
}

impl SendWindow {
    /// A window the peer opened with `initial` bytes.
    pub fn new(initial: u32) -> Self {
        Self { left: u64::from(initial) }
    }

    /// The peer takes `bytes` more. Grants beyond all reason saturate.
    pub fn grant(&mut self, bytes: u32) {
        self.left = self.left.saturating_add(u64::from(bytes));
    }

    /// Bytes that may be sent now, at most `wanted`.
    pub fn allowed(&self, wanted: usize) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX).min(wanted)
    }

    /// Counts `bytes` as sent.
    ///
    /// # Errors
    /// [`WindowExceeded`] when the peer has not granted that many; nothing is counted then.
    pub fn spend(&mut self, bytes: usize) -> Result<(), WindowExceeded> {
        let sent = bytes as u64;
        self.left = self.left.checked_sub(sent).ok_or(WindowExceeded { sent, left: self.left })?;
        Ok(())
    }
}

/// The receiver's side: what the peer may still send, and when to grant more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveWindow {
    size: u32,
    left: u64,
    consumed: u32,
}

impl ReceiveWindow {
    /// A window of `size` bytes, told to the peer when the stream was opened.
    pub fn new(size: u32) -> Self {
        Self { size, left: u64::from(size), consumed: 0 }
    }

    /// Counts bytes that arrived.
    ///
    /// # Errors
    /// [`WindowExceeded`] when the peer was not granted that many.
    pub fn receive(&mut self, bytes: usize) -> Result<(), WindowExceeded> {
        let sent = bytes as u64;
        self.left = self.left.checked_sub(sent).ok_or(WindowExceeded { sent, left: self.left })?;
        Ok(())
    }

    /// Counts bytes that were passed on; gives the grant to send once half the window is free again.
    ///
    /// Half, because smaller grants cost a frame each and larger ones let the sender run dry.
    pub fn consume(&mut self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.consumed = self.consumed.saturating_add(bytes);
        if self.consumed < self.size / 2 {
            return None;
        }
        let grant = std::mem::take(&mut self.consumed);
        self.left += u64::from(grant);
        Some(grant)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sending_more_than_granted_is_refused_and_not_counted() {
        let mut window = SendWindow::new(10);
        assert_eq!(window.allowed(20), 10);
        assert_eq!(window.spend(11), Err(WindowExceeded { sent: 11, left: 10 }));
        assert_eq!(window.spend(10), Ok(()));
        assert_eq!(window.allowed(1), 0);
        window.grant(5);
        assert_eq!(window.allowed(20), 5);
    }

    proptest! {
        #[test]
        fn a_stream_neither_stalls_nor_overruns(
            size in 2u32..5000,
            sends in prop::collection::vec(1usize..3000, 1..200),
        ) {
            let mut sender = SendWindow::new(size);
            let mut receiver = ReceiveWindow::new(size);
            let mut in_flight = 0u64;
            for wanted in sends {
                let mut rest = wanted;
                while rest > 0 {
                    let piece = sender.allowed(rest);
                    prop_assert!(piece > 0, "stalled with {} in flight", in_flight);
                    sender.spend(piece).unwrap();
                    in_flight += piece as u64;
                    prop_assert!(in_flight <= u64::from(size));
                    receiver.receive(piece).unwrap();
                    if let Some(grant) = receiver.consume(piece) {
                        sender.grant(grant);
                    }
                    in_flight -= piece as u64;
                    rest -= piece;
                }
            }
        }
    }
}
