//! Commands that the host runs for itself.

use microsandbox_protocol::{Exec, Program};

/// What a sandbox runs, as root and before anything else is run for a client, when it is a copy of
/// another: it makes anew what two machines must not share, such as host keys of a secure shell. One that
/// fails fails the start. Most have none.
pub const CLONE_HOOK: &str = "/etc/microsandbox/on-clone";

/// Longest that the hook may take.
const HOOK_WITHIN_MS: u64 = 60_000;

/// Proves a sandbox usable: it goes through the whole exec path and needs nothing of the image. A machine
/// is ready when it has passed, and a ping is how long it takes.
pub(crate) fn self_test() -> Exec {
    command(Program::SelfTest)
}

/// [`CLONE_HOOK`].
pub(crate) fn clone_hook() -> Exec {
    Exec { timeout_ms: Some(HOOK_WITHIN_MS), ..command(Program::Path(CLONE_HOOK.into())) }
}

fn command(program: Program) -> Exec {
    Exec { cwd: Some("/".into()), user: Some("0:0".into()), ..Exec::new(program) }
}
