//! What the guest uses: one question, one answer.

use microsandbox_protocol::{Kind, Message, Metrics, MetricsCall};

use super::AgentClient;
use crate::{Error, Result};

impl AgentClient {
    /// Asks the guest what it uses.
    ///
    /// # Errors
    /// [`Error::Unsupported`] when its agent is older, [`Error::Closed`] when the sandbox has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn metrics(&self) -> Result<Metrics> {
        let mut stream = self.open(&MetricsCall {}, "metrics".into(), 0)?;
        while let Some(frame) = stream.next_frame().await? {
            if frame.kind == Kind::Metrics.byte() {
                stream.ended = true;
                let malformed = |source| Error::Protocol { peer: "agent", source };
                return Metrics::from_frame(&frame).map_err(malformed);
            }
            stream.interpret(frame)?;
        }
        Err(Error::Closed { during: "a question about metrics" })
    }
}
