//! Detached jobs of the guest: one stream for each question, which ends without ending the job.

use bytes::Bytes;
use microsandbox_protocol::{
    DEFAULT_WINDOW_BYTES, Frame, JobAttached, JobCall, JobDetail, JobDetails, JobGap, JobInfo,
    JobOperation, JobUnknown, Jobs, Kind, Message, TerminalSize,
};

use super::{AgentClient, ExecStream, StdinWriter, program_name};
use crate::{Error, Result};

/// A question about jobs. Dropping it ends no job.
#[derive(Debug)]
pub struct JobStream {
    stream: ExecStream,
}

/// What comes of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobUpdate {
    /// All jobs; nothing follows.
    All(Vec<JobInfo>),
    /// What is typed goes to the job from here on.
    Attached {
        /// Whether it has a terminal: it takes no input without one.
        terminal: bool,
    },
    /// The jobs asked for; nothing follows.
    Details(Vec<JobDetail>),
    /// Output is missing here.
    Gap {
        /// How many bytes.
        bytes: u64,
    },
    /// How the job is; nothing follows.
    Info(JobInfo),
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It wrote to standard output.
    Stdout(Bytes),
}

impl AgentClient {
    /// Asks about jobs.
    ///
    /// # Errors
    /// [`Error::TooLong`] before anything is sent; [`Error::Closed`] when the sandbox has ended.
    pub fn job_call(&self, operation: JobOperation) -> Result<JobStream> {
        let program = match &operation {
            JobOperation::Start { exec, .. } | JobOperation::StartOnTerminal { exec, .. } => {
                program_name(exec)
            }
            _ => "a detached job".into(),
        };
        let call = JobCall { window: DEFAULT_WINDOW_BYTES, operation };
        Ok(JobStream { stream: self.open(&call, program, call.window)? })
    }
}

impl JobStream {
    /// What comes next; `None` after the last.
    ///
    /// # Errors
    /// [`Error::UnknownJob`], [`Error::Exec`] when a job could not be started,
    /// [`Error::Unsupported`], [`Error::Closed`] when the sandbox ended first.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> Result<Option<JobUpdate>> {
        while let Some(frame) = self.stream.next_frame().await? {
            if let Some(update) = self.interpret(frame)? {
                return Ok(Some(update));
            }
        }
        Ok(None)
    }

    /// The way to the job's terminal, once attached.
    pub fn stdin(&self) -> StdinWriter {
        self.stream.stdin()
    }

    /// Tells the job's terminal its new size, once attached.
    pub fn resize(&self, size: TerminalSize) {
        self.stream.resize(size);
    }

    fn interpret(&mut self, frame: Frame) -> Result<Option<JobUpdate>> {
        let malformed = |source| Error::Protocol { peer: "agent", source };
        Ok(Some(match Kind::from_byte(frame.kind) {
            Some(Kind::JobInfo) => {
                self.stream.ended = true;
                JobUpdate::Info(JobInfo::from_frame(&frame).map_err(malformed)?)
            }
            Some(Kind::Jobs) => {
                self.stream.ended = true;
                JobUpdate::All(Jobs::from_frame(&frame).map_err(malformed)?.jobs)
            }
            Some(Kind::JobDetails) => {
                self.stream.ended = true;
                JobUpdate::Details(JobDetails::from_frame(&frame).map_err(malformed)?.jobs)
            }
            Some(Kind::JobAttached) => {
                let attached = JobAttached::from_frame(&frame).map_err(malformed)?;
                JobUpdate::Attached { terminal: attached.terminal }
            }
            Some(Kind::JobUnknown) => {
                self.stream.ended = true;
                let JobUnknown { id } = JobUnknown::from_frame(&frame).map_err(malformed)?;
                return Err(Error::UnknownJob { id });
            }
            Some(Kind::JobGap) => {
                let JobGap { bytes } = JobGap::from_frame(&frame).map_err(malformed)?;
                JobUpdate::Gap { bytes }
            }
            Some(Kind::Stdout) => JobUpdate::Stdout(self.stream.take(frame.body)),
            Some(Kind::Stderr) => JobUpdate::Stderr(self.stream.take(frame.body)),
            // Failures to start, and an agent that does not know jobs.
            _ => {
                self.stream.interpret(frame)?;
                return Ok(None);
            }
        }))
    }
}
