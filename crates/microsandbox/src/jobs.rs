//! Detached jobs: commands that go on when the program that started them has gone.
//!
//! A job may have a terminal, which is connected with that of this process and left again as often as
//! somebody likes; a terminal session that is left becomes a job.
//!
//! A job ends by itself, by a signal, or with its sandbox. Its output goes into a bounded record in
//! the sandbox (1 MiB for one job, 8 MiB for all); output that was dropped before it was read is told
//! as a gap. The last 256 jobs that have ended are kept until they are removed.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use microsandbox_runtime::{
    Error as RuntimeError, JobStream, JobUpdate,
    wire::{ExecLimits, JobDetail, JobInfo, JobOperation, TerminalSize, Timestamp},
};

use crate::{
    AttachEnd, ExitStatus, MicrosandboxError, MicrosandboxResult, attach,
    detach::DEFAULT_KEYS,
    exec::{self, ExecOptions, StdinMode, Usage},
    link::Link,
};

/// Number of a job in its sandbox: from 1, never used again while the sandbox runs.
pub type JobId = u64;

/// A job of a sandbox. Dropping it does nothing to the job.
#[derive(Debug, Clone)]
pub struct JobHandle {
    link: Link,
    detail: JobDetail,
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
    /// The job as it was when this was asked for.
    asked: JobDetail,
    last: Option<JobInfo>,
}

impl JobHandle {
    /// Its number.
    pub fn id(&self) -> JobId {
        self.detail.info.id
    }

    /// Program and arguments, cut after 1024 bytes.
    pub fn command(&self) -> &[String] {
        &self.detail.info.command
    }

    /// Process id in the guest of its first process.
    pub fn pid(&self) -> u32 {
        self.detail.info.pid
    }

    /// When it was started, by the sandbox's clock.
    pub fn started_at(&self) -> Option<DateTime<Utc>> {
        date(self.detail.info.started)
    }

    /// How it was when this handle was made or last refreshed.
    pub fn state(&self) -> JobState {
        match self.detail.info.ended {
            None => JobState::Running,
            Some(end) => JobState::Exited {
                status: ExitStatus::new(&end.exited, &self.detail.limits),
                at: date(end.at).unwrap_or_default(),
                usage: end.exited.usage,
                timed_out: end.exited.timed_out,
            },
        }
    }

    /// What it and its descendants may use together.
    pub fn limits(&self) -> ExecLimits {
        self.detail.limits
    }

    /// What it and its descendants had used when this handle was made or last refreshed.
    pub fn usage(&self) -> Usage {
        self.detail.usage
    }

    /// Whether it runs on a terminal.
    pub fn has_terminal(&self) -> bool {
        self.detail.terminal
    }

    /// Bytes of output so far, and how many of them are not kept any more.
    pub fn output_bytes(&self) -> (u64, u64) {
        (self.detail.info.output_bytes, self.detail.info.dropped_bytes)
    }

    /// Asks the sandbox how it is now.
    ///
    /// # Errors
    /// [`MicrosandboxError::JobNotFound`], [`MicrosandboxError::SandboxEnded`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn refresh(&mut self) -> MicrosandboxResult<()> {
        *self = find(&self.link, self.id()).await?;
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
        let asked = self.detail.clone();
        Ok(JobOutput { link: self.link.clone(), stream, asked, last: None })
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// As [`JobHandle::refresh`].
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn wait(&mut self) -> MicrosandboxResult<ExitStatus> {
        ask(&self.link, JobOperation::Wait { id: self.id() }).await?;
        self.refresh().await?;
        match self.state() {
            JobState::Exited { status, .. } => Ok(status),
            JobState::Running => Err(no_answer(&self.link)),
        }
    }

    /// Connects it with the terminal of this process, until it ends or the user presses `ctrl-]`: its
    /// output from where it was last looked at, and keys to its terminal if it has one.
    ///
    /// # Errors
    /// As [`crate::Sandbox::attach`], and as [`JobHandle::refresh`].
    ///
    /// # Cancel safety
    /// Dropping the future restores the terminal and does nothing to the job.
    pub async fn attach(&self) -> MicrosandboxResult<AttachEnd> {
        self.attach_with(DEFAULT_KEYS).await
    }

    /// As [`JobHandle::attach`] with other keys to leave it by, as
    /// [`crate::AttachOptionsBuilder::detach_keys`] has them.
    ///
    /// # Errors
    /// As [`JobHandle::attach`].
    ///
    /// # Cancel safety
    /// As [`JobHandle::attach`].
    pub async fn attach_with(&self, detach_keys: &str) -> MicrosandboxResult<AttachEnd> {
        match attach::run_job(&self.link, self.id(), detach_keys).await? {
            // It tells how it ended, with its limits.
            AttachEnd::Exited(_) => Ok(AttachEnd::Exited(self.clone().wait().await?)),
            detached => Ok(detached),
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
                JobUpdate::All(_) | JobUpdate::Attached { .. } | JobUpdate::Details(_) => {}
            }
        }
        Ok(None)
    }

    /// The job as it was after the last of its output; `None` before that.
    pub fn job(&self) -> Option<JobHandle> {
        let detail = JobDetail { info: self.last.clone()?, ..self.asked.clone() };
        let usage = detail.info.ended.map_or(detail.usage, |end| end.exited.usage);
        Some(JobHandle { link: self.link.clone(), detail: JobDetail { usage, ..detail } })
    }
}

/// Starts a job.
pub(crate) async fn start(
    link: &Link,
    cmd: String,
    options: ExecOptions,
    size: TerminalSize,
) -> MicrosandboxResult<JobHandle> {
    if options.stdin != StdinMode::Null {
        let message = "a detached job has no input but that of its terminal";
        return Err(MicrosandboxError::InvalidConfig(message.into()));
    }
    let (limits, terminal) = (options.limits, options.tty);
    let exec = exec::request(cmd, options, size).0;
    let operation = match terminal {
        true => JobOperation::StartOnTerminal { exec, limits },
        false => JobOperation::Start { exec, limits },
    };
    let info = ask(link, operation).await?;
    let detail = JobDetail { info, limits, usage: Usage::default(), terminal };
    Ok(JobHandle { link: link.clone(), detail })
}

/// Every job, in the order of their numbers.
pub(crate) async fn all(link: &Link) -> MicrosandboxResult<Vec<JobHandle>> {
    let handle = |detail| JobHandle { link: link.clone(), detail };
    Ok(details(link, None).await?.into_iter().map(handle).collect())
}

/// The job of that number.
pub(crate) async fn find(link: &Link, id: JobId) -> MicrosandboxResult<JobHandle> {
    let detail = details(link, Some(id)).await?.pop().ok_or_else(|| no_answer(link))?;
    Ok(JobHandle { link: link.clone(), detail })
}

async fn details(link: &Link, id: Option<JobId>) -> MicrosandboxResult<Vec<JobDetail>> {
    let stream = link.client.job_call(JobOperation::Describe { id });
    let mut stream = stream.map_err(|error| link.explain(error))?;
    match stream.next().await.map_err(|error| link.explain(error))? {
        Some(JobUpdate::Details(jobs)) => Ok(jobs),
        _ => Err(no_answer(link)),
    }
}

async fn ask(link: &Link, operation: JobOperation) -> MicrosandboxResult<JobInfo> {
    let stream = link.client.job_call(operation);
    let mut stream = stream.map_err(|error| link.explain(error))?;
    match stream.next().await.map_err(|error| link.explain(error))? {
        Some(JobUpdate::Info(info)) => Ok(info),
        _ => Err(no_answer(link)),
    }
}

pub(crate) fn no_answer(link: &Link) -> MicrosandboxError {
    link.explain(RuntimeError::Closed { during: "an answer about a job" })
}

fn date(time: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, time.nanoseconds)
}
