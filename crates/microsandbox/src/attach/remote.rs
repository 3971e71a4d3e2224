//! The other end of a terminal session: a command of this session's own, or a job.

use bytes::Bytes;
use microsandbox_runtime::{
    ExecUpdate, JobStream, JobUpdate,
    wire::{ExecLimits, JobInfo, JobOperation, TerminalSize},
};

use crate::{
    ExecHandle, ExecSink, ExitStatus, JobId, MicrosandboxResult, jobs::no_answer, link::Link,
};

/// What is at the other end.
pub(super) enum Remote {
    /// A command, which this end's going ends unless it was left.
    Command(ExecHandle),
    /// A job, which goes on without this end.
    Job(Job),
}

pub(super) struct Job {
    id: JobId,
    link: Link,
    stream: JobStream,
    /// The user has left.
    left: bool,
    /// How it was when nothing followed.
    last: Option<JobInfo>,
}

/// What the other end says.
pub(super) enum News {
    /// This is to be seen.
    Output(Bytes),
    /// It has ended.
    Ended,
    /// It goes on without us.
    Left {
        /// As this job; none: it could not be kept.
        job: Option<JobId>,
    },
}

impl Remote {
    /// Connects to a job. Without a terminal it takes no input.
    pub(super) async fn job(
        link: &Link,
        id: JobId,
        size: TerminalSize,
    ) -> MicrosandboxResult<(Self, Option<ExecSink>)> {
        let explain = |error| link.explain(error);
        let operation = JobOperation::Attach { id, size: Some(size) };
        let mut stream = link.client.job_call(operation).map_err(explain)?;
        let JobUpdate::Attached { terminal } =
            stream.next().await.map_err(explain)?.ok_or_else(|| no_answer(link))?
        else {
            return Err(no_answer(link));
        };
        let stdin = terminal.then(|| ExecSink::new(stream.stdin()));
        let job = Job { id, link: link.clone(), stream, left: false, last: None };
        Ok((Self::Job(job), stdin))
    }

    /// What comes next.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> MicrosandboxResult<News> {
        match self {
            Self::Command(command) => loop {
                return Ok(match command.next_update().await? {
                    Some(ExecUpdate::Stdout(bytes) | ExecUpdate::Stderr(bytes)) => {
                        News::Output(bytes)
                    }
                    Some(ExecUpdate::Detached(info)) => News::Left { job: Some(info.id) },
                    Some(ExecUpdate::NotDetached) => {
                        const SIGHUP: i32 = 1;
                        command.signal(SIGHUP).await?;
                        News::Left { job: None }
                    }
                    Some(ExecUpdate::Started { .. } | ExecUpdate::Exited(_)) => continue,
                    None => News::Ended,
                });
            },
            Self::Job(job) => job.next().await,
        }
    }

    /// Asks to be left to itself; the answer is [`News::Left`].
    pub(super) fn leave(&mut self) {
        match self {
            Self::Command(command) => command.ask_to_detach(),
            Self::Job(job) => job.left = true,
        }
    }

    pub(super) fn resize(&self, size: TerminalSize) {
        match self {
            Self::Command(command) => command.resize_to(size),
            Self::Job(job) => job.stream.resize(size),
        }
    }

    /// How it ended, after [`News::Ended`].
    pub(super) async fn status(&mut self) -> MicrosandboxResult<ExitStatus> {
        match self {
            Self::Command(command) => command.wait().await,
            Self::Job(job) => {
                let ended = job.last.as_ref().and_then(|info| info.ended);
                let ended = ended.ok_or_else(|| no_answer(&job.link))?;
                Ok(ExitStatus::new(&ended.exited, &ExecLimits::default()))
            }
        }
    }
}

impl Job {
    async fn next(&mut self) -> MicrosandboxResult<News> {
        if self.left {
            return Ok(News::Left { job: Some(self.id) });
        }
        while let Some(update) = self.stream.next().await.map_err(|e| self.link.explain(e))? {
            match update {
                JobUpdate::Stdout(bytes) | JobUpdate::Stderr(bytes) => {
                    return Ok(News::Output(bytes));
                }
                JobUpdate::Gap { bytes } => {
                    let told = format!("\r\n[{bytes} bytes of output are missing here]\r\n");
                    return Ok(News::Output(told.into()));
                }
                JobUpdate::Info(info) => self.last = Some(info),
                JobUpdate::All(_) | JobUpdate::Attached { .. } | JobUpdate::Details(_) => {}
            }
        }
        Ok(News::Ended)
    }
}
