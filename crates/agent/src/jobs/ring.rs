//! The last of a job's output, in the order it came; what was dropped is known by its length.

use std::cell::RefCell;
use std::collections::VecDeque;

use microsandbox_protocol::{JOB_OUTPUT_BYTES, Kind};

/// A bounded record of output. Positions count bytes since the job began.
#[derive(Debug, Default)]
pub(super) struct Ring(RefCell<State>);

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<Chunk>,
    /// Position of the oldest byte that is kept.
    start: u64,
    end: u64,
    /// What the chunks cost.
    kept: usize,
}

#[derive(Debug)]
struct Chunk {
    position: u64,
    kind: Kind,
    bytes: Vec<u8>,
}

/// Small writes are kept together up to this length.
const CHUNK: usize = 16 << 10;

/// What a chunk costs beside its bytes.
const OVERHEAD: usize = size_of::<Chunk>();

/// What is found at a position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// These bytes, of this output.
    Bytes(Kind, Vec<u8>),
    /// Nothing yet.
    End,
    /// So many bytes are not kept any more.
    Gap(u64),
}

impl Ring {
    /// Adds output; drops the oldest for it.
    pub(super) fn push(&self, kind: Kind, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        let position = state.end;
        state.end += bytes.len() as u64;
        state.kept += bytes.len();
        match state.chunks.back_mut() {
            Some(last) if last.kind == kind && last.bytes.len() + bytes.len() <= CHUNK => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => {
                state.kept += OVERHEAD;
                state.chunks.push_back(Chunk { position, kind, bytes: bytes.to_vec() });
            }
        }
        drop(state);
        while self.kept() > JOB_OUTPUT_BYTES {
            self.drop_oldest();
        }
    }

    /// Drops the oldest chunk; gives what that has freed.
    pub(super) fn drop_oldest(&self) -> usize {
        let mut state = self.0.borrow_mut();
        let Some(chunk) = state.chunks.pop_front() else { return 0 };
        let freed = chunk.bytes.len() + OVERHEAD;
        state.start = chunk.position + chunk.bytes.len() as u64;
        state.kept -= freed;
        freed
    }

    /// What is at `position`, at most `most` bytes of it.
    pub(super) fn read(&self, position: u64, most: usize) -> Found {
        let state = self.0.borrow();
        if position < state.start {
            return Found::Gap(state.start - position);
        }
        let after = state.chunks.partition_point(|chunk| chunk.position <= position);
        let Some(chunk) = after.checked_sub(1).and_then(|at| state.chunks.get(at)) else {
            return Found::End;
        };
        let skipped = usize::try_from(position - chunk.position).unwrap_or(usize::MAX);
        let bytes = chunk.bytes.get(skipped..).unwrap_or_default();
        if bytes.is_empty() {
            return Found::End;
        }
        Found::Bytes(chunk.kind, bytes[..bytes.len().min(most)].to_vec())
    }

    /// Position of the oldest byte that is kept: so many were dropped.
    pub(super) fn start(&self) -> u64 {
        self.0.borrow().start
    }

    /// Position behind the last byte.
    pub(super) fn end(&self) -> u64 {
        self.0.borrow().end
    }

    /// Memory it takes.
    pub(super) fn kept(&self) -> usize {
        self.0.borrow().kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_read_in_order_and_by_kind() {
        let ring = Ring::default();
        assert_eq!(ring.read(0, 9), Found::End);
        ring.push(Kind::Stdout, b"one ");
        ring.push(Kind::Stdout, b"two");
        ring.push(Kind::Stderr, b"err");
        assert_eq!(ring.read(0, 100), Found::Bytes(Kind::Stdout, b"one two".to_vec()));
        assert_eq!(ring.read(2, 3), Found::Bytes(Kind::Stdout, b"e t".to_vec()));
        assert_eq!(ring.read(7, 100), Found::Bytes(Kind::Stderr, b"err".to_vec()));
        assert_eq!(ring.read(10, 100), Found::End);
        assert_eq!((ring.start(), ring.end()), (0, 10));
    }

    #[test]
    fn what_is_dropped_is_a_gap_of_its_length_and_memory_stays_bounded() {
        let ring = Ring::default();
        for turn in 0..2_000_000_u32 {
            let kind = if turn % 2 == 0 { Kind::Stdout } else { Kind::Stderr };
            ring.push(kind, b"x");
        }
        assert!(ring.kept() <= JOB_OUTPUT_BYTES);
        assert_eq!(ring.end(), 2_000_000);
        let Found::Gap(gap) = ring.read(0, 1) else { panic!("nothing was dropped") };
        assert_eq!(gap, ring.start());
        assert!(matches!(ring.read(gap, 1), Found::Bytes(..)));
        ring.push(Kind::Stdout, &vec![0; 3 * JOB_OUTPUT_BYTES]);
        assert!(ring.kept() <= JOB_OUTPUT_BYTES);
        assert_eq!(ring.start(), ring.end());
    }
}
