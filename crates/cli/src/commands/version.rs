//! `msb version`.

use crate::output;

/// Drivers that this msb was built with.
const DRIVERS: &str = if cfg!(feature = "libkrun") { "qemu, libkrun" } else { "qemu" };

/// Says which version this is.
pub(crate) fn run() -> anyhow::Result<()> {
    output::line(format_args!("msb {} (drivers: {DRIVERS})", env!("CARGO_PKG_VERSION")))
}
