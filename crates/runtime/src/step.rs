//! Steps in a sandbox's life. Tests stop a process at one of them, to kill it there and nowhere else, or
//! have it try something there.
//!
//! Only with the feature `stop-at-step`, which nothing but tests enables: without it this is nothing.

#[cfg(feature = "stop-at-step")]
mod armed {
    use std::sync::{Mutex, PoisonError};

    use nix::sys::signal::{Signal, raise};

    static STEP: Mutex<Option<String>> = Mutex::new(None);

    /// Stops this process, once, when it or a supervisor it starts reaches `step`: the first one alone
    /// where the step is a supervisor's.
    pub fn stop_at(step: Option<String>) {
        *STEP.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    type Call = (&'static str, fn());

    static CALL: Mutex<Option<Call>> = Mutex::new(None);

    /// Calls a function of the test in every process that reaches `step`.
    pub fn call_at(step: &'static str, call: fn()) {
        *CALL.lock().unwrap_or_else(PoisonError::into_inner) = Some((step, call));
    }

    /// The step at which a supervisor that is started now is to stop.
    pub(crate) fn handed_on() -> Option<String> {
        let mut step = STEP.lock().unwrap_or_else(PoisonError::into_inner);
        let is_theirs = step.as_ref().is_some_and(|step| step.starts_with("supervisor."));
        if is_theirs { step.take() } else { step.clone() }
    }

    /// A step is done.
    pub fn reached(step: &'static str) {
        let call = *CALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, call)) = call.filter(|(at, _)| *at == step) {
            call();
        }
        let mut armed = STEP.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.take_if(|armed| armed == step).is_some() {
            drop(armed);
            // Stops every thread until somebody sends SIGCONT; cannot fail for one's own process.
            let _stopped = raise(Signal::SIGSTOP);
        }
    }
}

#[cfg(not(feature = "stop-at-step"))]
mod armed {
    pub(crate) fn stop_at(_step: Option<String>) {}

    pub(crate) fn handed_on() -> Option<String> {
        None
    }

    /// A step is done.
    pub fn reached(_step: &'static str) {}
}

pub use armed::*;
