//! The fuzzer's targets of this crate; `cargo xtask fuzz` runs them.

mod targets;

use std::path::Path;

fn main() -> anyhow::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    microsandbox_fuzz::fuzz(targets::TARGETS, &corpus)
}
