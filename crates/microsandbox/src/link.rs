//! The connection to a running sandbox, and what its end means.

use microsandbox_runtime::{AgentClient, Error as RuntimeError, SandboxDir, wire::ExecFailure};

use crate::{MicrosandboxError, end};

/// A connection that knows whose it is. Cheap to clone; owns nothing of the sandbox's life.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) name: String,
    pub(crate) dir: SandboxDir,
    pub(crate) client: AgentClient,
}

impl Link {
    /// Says why the sandbox ended where an error only says that the link is closed.
    pub(crate) fn explain(&self, error: RuntimeError) -> MicrosandboxError {
        if is_standstill(&error) {
            return MicrosandboxError::SandboxPaused(self.name.clone());
        }
        if !matches!(error, RuntimeError::Closed { .. }) {
            return error.into();
        }
        match end::told(Some(&self.client), &self.dir) {
            Ok(Some(end)) => {
                MicrosandboxError::SandboxEnded { name: self.name.clone(), reason: end.reason }
            }
            _ => error.into(),
        }
    }
}

/// Whether something was refused because the sandbox stands still.
fn is_standstill(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Exec { failed, .. } if failed.failure == ExecFailure::Paused)
}
