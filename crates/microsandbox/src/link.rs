//! The connection to a running sandbox, and what its end means.

use microsandbox_runtime::{
    AgentClient, Error as RuntimeError, ExitRecord, SandboxDir, wire::ExecFailure,
};

use crate::MicrosandboxError;

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
        match self.end() {
            Some(end) if matches!(error, RuntimeError::Closed { .. }) => {
                MicrosandboxError::SandboxEnded { name: self.name.clone(), reason: end.reason }
            }
            _ if is_standstill(&error) => MicrosandboxError::SandboxPaused(self.name.clone()),
            _ => error.into(),
        }
    }

    /// How the sandbox ended: in its supervisor's words, or from its records. The records of an
    /// ephemeral sandbox are gone with it.
    pub(crate) fn end(&self) -> Option<ExitRecord> {
        self.client.end().cloned().or_else(|| self.dir.exit_record().ok().flatten())
    }
}

/// Whether something was refused because the sandbox stands still.
fn is_standstill(error: &RuntimeError) -> bool {
    matches!(error, RuntimeError::Exec { failed, .. } if failed.failure == ExecFailure::Paused)
}
