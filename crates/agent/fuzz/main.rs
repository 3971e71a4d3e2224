//! The fuzzer's target of this crate: an agent whose host is hostile.

use std::path::Path;

use microsandbox_fuzz::{Target, frames};

/// The link, the command, the job's beginning, and two that are free.
const STREAMS: [u32; 5] = [0, 1, 2, 3, 4];

const TARGETS: &[Target] = &[Target {
    name: "host",
    run: microsandbox_agent::fuzz::host,
    repair: |input| frames::repair(input, &STREAMS),
}];

fn main() -> anyhow::Result<()> {
    microsandbox_agent::fuzz::begin();
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    microsandbox_fuzz::fuzz(TARGETS, &corpus)
}
