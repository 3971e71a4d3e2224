//! Having a sandbox stand still and go on.

use std::time::Duration;

use microsandbox_protocol::{Concluded, Kind, Message, Outcome, Pause, Resume, Save};

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

    /// Has the machine saved into a new folder of that name in the sandbox's directory; gives how long
    /// the guest stood still. The folder is the caller's to take away while it stays connected.
    ///
    /// # Errors
    /// As [`AgentClient::pause`], and [`Error::DiskFull`].
    ///
    /// # Cancel safety
    /// It may be saved all the same; the folder goes when the connection does.
    pub async fn save(&self, folder: &str) -> Result<Duration> {
        let outcome = self.ask(&Save { folder: folder.into() }, "save").await?;
        match outcome {
            Outcome::Saved { still_us } => Ok(Duration::from_micros(still_us)),
            _ => Err(Error::Closed { during: "saving" }),
        }
    }

    async fn conclude(&self, wish: &impl Message, action: &'static str) -> Result<()> {
        self.ask(wish, action).await.map(drop)
    }

    /// Asks the supervisor for something, and waits until it is done.
    async fn ask(&self, wish: &impl Message, action: &'static str) -> Result<Outcome> {
        let mut stream = self.open(wish, action.into(), 0)?;
        while let Some(frame) = stream.next_frame().await? {
            if frame.kind != Kind::Concluded.byte() {
                stream.interpret(frame)?;
                continue;
            }
            stream.ended = true;
            let malformed = |source| Error::Protocol { peer: "supervisor", source };
            return match Concluded::from_frame(&frame).map_err(malformed)?.outcome {
                done @ (Outcome::Done | Outcome::Saved { .. }) => Ok(done),
                Outcome::DiskFull { detail } => Err(Error::DiskFull { action, detail }),
                Outcome::Failed { detail } => Err(Error::Standstill { action, detail }),
                Outcome::Unsupported { vmm } => Err(Error::Incapable { action, vmm }),
            };
        }
        Err(Error::Closed { during: "a pause" })
    }
}
