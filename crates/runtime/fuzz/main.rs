//! The fuzzer's target of this crate: a relay between a hostile guest and a hostile client.

use std::path::Path;

use microsandbox_fuzz::{Target, frames};

/// The link, the supervisor's own, two of the client's, one of somebody else's.
const STREAMS: [u32; 5] = [0, 2, 1 << 16, (1 << 16) + 1, 2 << 16];

const TARGETS: &[Target] = &[Target {
    name: "relay",
    run: microsandbox_runtime::fuzz::relay,
    repair: |input| frames::repair(input, &STREAMS),
}];

fn main() -> anyhow::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    microsandbox_fuzz::fuzz(TARGETS, &corpus)
}
