//! Detached jobs: commands that go on when the program that started them has gone.
//!
//! A job ends by itself, by a signal, or with its sandbox. Its output goes into a bounded record in
//! the sandbox (1 MiB for one job, 8 MiB for all); output that was dropped before it was read is told
//! as a gap. The last 256 jobs that have ended are kept until they are removed.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use microsandbox_runtime::{
    Error as RuntimeError, JobStream, JobUpdate,
    wire::{self, JobInfo, JobOperation, Timestamp},
};

use crate::{
    ExitStatus, MicrosandboxError, MicrosandboxResult,
    exec::{self, ExecOptions, StdinMode, Usage},
    link::Link,
};

/// Number of a job in its sandbox: from 1, never used again while the sandbox runs.
pub type JobId = u64;

/// A job of a sandbox. Dropping it does nothing to the job.
#[derive(Debug, Clone)]
pub struct JobHandle {
    link: Link,
    info: JobInfo,
}

/// How a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobState {
    /// It runs.
    Running,
    /// It has ended.
    Exited {
        /// How.
        status: ExitStatus,
        /// When.
        at: DateTime<Utc>,
        /// What it used, descendants included.
        usage: Usage,
        /// It was killed because its time was up.
        timed_out: bool,
    },
}

/// What comes of a job's output.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum JobEvent {
    /// Output is missing here: it was dropped before it was read.
    Gap {
        /// How many bytes.
        bytes: u64,
    },
    /// It wrote to standard error.
    Stderr(Bytes),
    /// It wrote to standard output.
    Stdout(Bytes),
}

/// Which of a job's output is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobOutputMode {
    /// What is kept, and then what comes until the job has ended.
    Follow,
    /// What comes from now on, until the job has ended.
    FollowNew,
    /// What is kept now.
    Kept,
}

/// Output of a job. Dropping it does nothing to the job.
#[derive(Debug)]
pub struct JobOutput {
    link: Link,
    stream: JobStream,
    last: Option<JobInfo>,
}

impl JobHandle {
    /// Its number.
    pub fn id(&self) -> JobId {
        self.info.id
    }

    /// Program and arguments, cut after 1024 bytes.
    pub fn command(&self) -> &[String] {
        &self.info.command
    }

    /// Process id in the guest of its first process.
    pub fn pid(&self) -> u32 {
        self.info.pid
    }

    /// When it was started, by the sandbox's clock.
    pub fn started_at(&self) -> Option<DateTime<Utc>> {
        date(self.info.started)
    }

    /// How it was when this handle was made or last refreshed.
    pub fn state(&self) -> JobState {
        match self.info.ended {
            None => JobState::Running,
            Some(end) => JobState::Exited {
                status: ExitStatus::new(&end.exited, &wire::ExecLimits::default()),
                at: date(end.at).unwrap_or_default(),
                usage: end.exited.usage,
                timed_out: end.exited.timed_out,
            },
        }
    }

    /// Bytes of output so far, and how many of them are not kept any more.
    pub fn output_bytes(&self) -> (u64, u64) {
        (self.info.output_bytes, self.info.dropped_bytes)
    }

    /// Asks the sandbox how it is now.
    ///
    /// # Errors
    /// [`MicrosandboxError::JobNotFound`], [`MicrosandboxError::SandboxEnded`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn refresh(&mut self) -> MicrosandboxResult<()> {
        // No signal: only whether the job is there, and how it is.
        self.info = ask(&self.link, JobOperation::Signal { id: self.id(), signal: 0 }).await?;
        Ok(())
    }

    /// Its output, standard error apart.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`], here or from the stream.
    pub async fn output(&self, mode: JobOutputMode) -> MicrosandboxResult<JobOutput> {
        let (follow, from_start) = match mode {
            JobOutputMode::Follow => (true, true),
            JobOutputMode::FollowNew => (true, false),
            JobOutputMode::Kept => (false, true),
        };
        let operation = JobOperation::Output { id: self.id(), follow, from_start };
        let stream = self.link.client.job_call(operation);
        let stream = stream.map_err(|error| self.link.explain(error))?;
        Ok(JobOutput { link: self.link.clone(), stream, last: None })
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&mut self) -> MicrosandboxResult<ExitStatus> {
        self.info = ask(&self.link, JobOperation::Wait { id: self.id() }).await?;
        match self.state() {
            JobState::Exited { status, .. } => Ok(status),
            JobState::Running => Err(no_answer(&self.link)),
        }
    }

    /// Sends a signal to its process group, by its number on Linux x86-64.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`]; a job that has ended is not told.
    pub async fn signal(&self, signal: i32) -> MicrosandboxResult<()> {
        ask(&self.link, JobOperation::Signal { id: self.id(), signal }).await.map(drop)
    }

    /// Kills it with all its descendants.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`].
    pub async fn kill(&self) -> MicrosandboxResult<()> {
        ask(&self.link, JobOperation::Kill { id: self.id() }).await.map(drop)
    }

    /// Forgets it with its output.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`]; [`MicrosandboxError::JobRunning`] when it has not ended.
    pub async fn remove(&self) -> MicrosandboxResult<()> {
        let info = ask(&self.link, JobOperation::Forget { id: self.id() }).await?;
        match info.ended {
            Some(_) => Ok(()),
            None => Err(MicrosandboxError::JobRunning(self.id())),
        }
    }
}

impl JobOutput {
    /// What comes next; `None` after the last.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn recv(&mut self) -> MicrosandboxResult<Option<JobEvent>> {
        while let Some(update) = self.stream.next().await.map_err(|e| self.link.explain(e))? {
            match update {
                JobUpdate::Gap { bytes } => return Ok(Some(JobEvent::Gap { bytes })),
                JobUpdate::Stderr(bytes) => return Ok(Some(JobEvent::Stderr(bytes))),
                JobUpdate::Stdout(bytes) => return Ok(Some(JobEvent::Stdout(bytes))),
                JobUpdate::Info(info) => self.last = Some(info),
                JobUpdate::All(_) => {}
            }
        }
        Ok(None)
    }

    /// The job as it was after the last of its output; `None` before that.
    pub fn job(&self) -> Option<JobHandle> {
        let info = self.last.clone()?;
        Some(JobHandle { link: self.link.clone(), info })
    }
}

/// Starts a job.
pub(crate) async fn start(
    link: &Link,
    cmd: String,
    options: ExecOptions,
) -> MicrosandboxResult<JobHandle> {
    if options.tty || options.stdin != StdinMode::Null {
        return Err(MicrosandboxError::InvalidConfig(
            "a detached job has neither a terminal nor input".into(),
        ));
    }
    let limits = options.limits;
    let exec = exec::detached_request(cmd, options);
    let info = ask(link, JobOperation::Start { exec, limits }).await?;
    Ok(JobHandle { link: link.clone(), info })
}

/// Every job, in the order of their numbers.
pub(crate) async fn all(link: &Link) -> MicrosandboxResult<Vec<JobHandle>> {
    let stream = link.client.job_call(JobOperation::List);
    let mut stream = stream.map_err(|error| link.explain(error))?;
    match stream.next().await.map_err(|error| link.explain(error))? {
        Some(JobUpdate::All(jobs)) => {
            let handle = |info| JobHandle { link: link.clone(), info };
            Ok(jobs.into_iter().map(handle).collect())
        }
        _ => Err(no_answer(link)),
    }
}

/// The job of that number.
pub(crate) async fn find(link: &Link, id: JobId) -> MicrosandboxResult<JobHandle> {
    let info = ask(link, JobOperation::Signal { id, signal: 0 }).await?;
    Ok(JobHandle { link: link.clone(), info })
}

async fn ask(link: &Link, operation: JobOperation) -> MicrosandboxResult<JobInfo> {
    let stream = link.client.job_call(operation);
    let mut stream = stream.map_err(|error| link.explain(error))?;
    match stream.next().await.map_err(|error| link.explain(error))? {
        Some(JobUpdate::Info(info)) => Ok(info),
        _ => Err(no_answer(link)),
    }
}

fn no_answer(link: &Link) -> MicrosandboxError {
    link.explain(RuntimeError::Closed { during: "an answer about a job" })
}

fn date(time: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, time.nanoseconds)
}
