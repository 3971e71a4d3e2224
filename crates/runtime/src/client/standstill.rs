//! Having a sandbox stand still and go on.

use microsandbox_protocol::{Concluded, Kind, Message, Outcome, Pause, Resume};

use super::AgentClient;
use crate::{Error, Result};

impl AgentClient {
    /// Has the guest's processors stand still. One that stands still stays so.
    ///
    /// # Errors
    /// [`Error::Incapable`] where the VMM cannot, [`Error::Standstill`] when it did not,
    /// [`Error::Closed`] when the sandbox has ended.
    ///
    /// # Cancel safety
    /// It may stand still all the same.
    pub async fn pause(&self) -> Result<()> {
        self.conclude(&Pause {}, "pause").await
    }

    /// Has them go on.
    ///
    /// # Errors
    /// As [`AgentClient::pause`].
    ///
    /// # Cancel safety
    /// It may go on all the same.
    pub async fn resume(&self) -> Result<()> {
        self.conclude(&Resume {}, "resume").await
    }

    /// Asks the supervisor for something, and waits until it is done.
    async fn conclude(&self, wish: &impl Message, action: &'static str) -> Result<()> {
        let mut stream = self.open(wish, action.into(), 0)?;
        while let Some(frame) = stream.next_frame().await? {
            if frame.kind != Kind::Concluded.byte() {
                stream.interpret(frame)?;
                continue;
            }
            stream.ended = true;
            let malformed = |source| Error::Protocol { peer: "supervisor", source };
            return match Concluded::from_frame(&frame).map_err(malformed)?.outcome {
                Outcome::Done => Ok(()),
                Outcome::Failed { detail } => Err(Error::Standstill { action, detail }),
                Outcome::Unsupported { vmm } => Err(Error::Incapable { action, vmm }),
            };
        }
        Err(Error::Closed { during: "a pause" })
    }
}
