//! Diagnostics for developers on standard error, as `MSB_LOG` asks for them.
//!
//! What a user is meant to read goes through `report` and `output` instead.

use tracing_subscriber::EnvFilter;

/// Said when `MSB_LOG` is not set: failures that a command outlives.
const DEFAULT_DIRECTIVES: &str = "warn";

/// Starts logging; a directive that cannot be read is told and left out.
pub(crate) fn start() {
    let directives = microsandbox::env::read_text(microsandbox::env::MSB_LOG);
    let directives = directives.unwrap_or_else(|| DEFAULT_DIRECTIVES.into());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(directives))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
}
