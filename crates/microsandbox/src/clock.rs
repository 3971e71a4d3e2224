//! How long a start takes, step by step; the supervisor goes on with what begins here.

use std::time::{SystemTime, UNIX_EPOCH};

use microsandbox_runtime::BootTimes;

/// Runs from the moment a start is asked for.
#[derive(Debug)]
pub(crate) struct StartClock {
    /// That moment, microseconds since 1970.
    pub(crate) asked_at_us: u64,
    /// The steps that are done.
    pub(crate) times: BootTimes,
}

impl StartClock {
    pub(crate) fn start() -> Self {
        Self { asked_at_us: now_us(), times: BootTimes::default() }
    }

    /// Microseconds since then: what a step that has just been done goes down with.
    pub(crate) fn elapsed_us(&self) -> u64 {
        now_us().saturating_sub(self.asked_at_us)
    }
}

/// By the clock that every process of the sandbox shares.
fn now_us() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX)
}
