//! The command that proves a sandbox usable: it goes through the whole exec path and needs nothing of
//! the image. A boot is ready when it has passed, and a ping is how long it takes.

use microsandbox_protocol::{DEFAULT_WINDOW_BYTES, Exec, Program, StdinMode};

pub(crate) fn self_test() -> Exec {
    Exec {
        program: Program::SelfTest,
        args: Vec::new(),
        env: Vec::new(),
        cwd: Some("/".into()),
        user: Some("0:0".into()),
        stdin: StdinMode::Null,
        terminal: None,
        rlimits: Vec::new(),
        timeout_ms: None,
        window: DEFAULT_WINDOW_BYTES,
    }
}
