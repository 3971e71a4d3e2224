//! Steps in a sandbox's life. Tests stop a process at one of them, to kill it there and nowhere else, or
//! have it try something there.
//!
//! Only with the feature `stop-at-step`, which nothing but tests enables: without it this is nothing.

#[cfg(feature = "stop-at-step")]
mod armed {
    use std::sync::{Mutex, PoisonError};

    use nix::sys::signal::{Signal, raise};

    static STEP: Mutex<Option<String>> = Mutex::new(None);

    /// Stops this process, once, when it or a supervisor it starts reaches `step`.
    pub fn stop_at(step: Option<String>) {
        *STEP.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    type Call = (&'static str, fn());

    static CALL: Mutex<Option<Call>> = Mutex::new(None);

    /// Calls a function of the test in every process that reaches `step`.
    pub fn call_at(step: &'static str, call: fn()) {
        *CALL.lock().unwrap_or_else(PoisonError::into_inner) = Some((step, call));
    }

    /// The step at which this process is to stop.
    pub(crate) fn armed() -> Option<String> {
        STEP.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A step is done.
    pub fn reached(step: &'static str) {
        let call = *CALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, call)) = call.filter(|(at, _)| *at == step) {
            call();
        }
        if armed().as_deref() == Some(step) {
            stop_at(None);
            // Stops every thread until somebody sends SIGCONT; cannot fail for one's own process.
            let _stopped = raise(Signal::SIGSTOP);
        }
    }
}

#[cfg(not(feature = "stop-at-step"))]
mod armed {
    pub(crate) fn stop_at(_step: Option<String>) {}

    pub(crate) fn armed() -> Option<String> {
        None
    }

    /// A step is done.
    pub fn reached(_step: &'static str) {}
}

pub use armed::*;
