//! What this binary is: PID 1, a file operation, a test of itself, or the exec engine of an ordinary
//! process.

use std::ffi::{CStr, OsStr};

/// Argument of a process that shows that the agent's own file can be executed: it exits with 0.
pub(crate) const SELF_TEST: &CStr = c"self-test";

/// First argument of a process that does one file operation; the second one says which.
pub(crate) const FILES: &CStr = c"files";

/// Argument of a process that runs commands for whoever holds the other end of its standard input.
const SERVE: &str = "serve";

/// What this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// PID 1 of a guest. Its arguments come from the kernel command line and mean nothing.
    Init,
    /// Does one file operation, given by the second argument.
    Files,
    /// Shows that a program can be executed.
    SelfTest,
    /// Runs commands for a connected socket, standard input, without being PID 1: for tests, and to
    /// look at the agent without a machine around it.
    Serve,
}

impl Role {
    /// The role of the process `pid` with this first argument; `None`: it has none.
    pub fn of(pid: u32, argument: Option<&OsStr>) -> Option<Self> {
        let argument = argument.unwrap_or_default();
        match pid {
            1 => Some(Self::Init),
            _ if argument.as_encoded_bytes() == SELF_TEST.to_bytes() => Some(Self::SelfTest),
            _ if argument.as_encoded_bytes() == FILES.to_bytes() => Some(Self::Files),
            _ if argument == SERVE => Some(Self::Serve),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_1_is_init_whatever_the_kernel_passes_it() {
        for (pid, argument, role) in [
            (1, None, Some(Role::Init)),
            (1, Some("serve"), Some(Role::Init)),
            (2, Some("self-test"), Some(Role::SelfTest)),
            (2, Some("files"), Some(Role::Files)),
            (2, Some("serve"), Some(Role::Serve)),
            (2, Some("other"), None),
            (2, None, None),
        ] {
            assert_eq!(Role::of(pid, argument.map(OsStr::new)), role, "{pid} {argument:?}");
        }
    }
}
