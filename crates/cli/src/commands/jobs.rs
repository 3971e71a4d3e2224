//! `msb jobs`: commands that were started with `msb exec -d`, after the fact.

use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use microsandbox::{AttachEnd, JobEvent, JobHandle, JobId, JobOutputMode, JobState, Sandbox};
use serde::Serialize;

use crate::{
    interrupt::Interrupts,
    output::{self, Format, table::Table},
    report, session,
};

/// What to do with jobs.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the jobs of a sandbox.
    Ls(Ls),
    /// Show what is kept of a job's output.
    Logs(Logs),
    /// Connect to a job: its output, and its terminal if it has one; msb ends with its exit code.
    Attach(Attach),
    /// Wait for a job's end; msb ends with its exit code.
    Wait(One),
    /// Kill a job with all its descendants, or send it a signal.
    Kill(Kill),
    /// Forget jobs that have ended, with their output.
    Rm(Rm),
}

/// Arguments of `msb jobs ls`.
#[derive(Debug, clap::Args)]
pub(crate) struct Ls {
    /// Name of the sandbox
    name: String,
    /// How to write the list
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// Arguments of `msb jobs logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    job: One,
    /// Go on until the job has ended
    #[arg(short, long)]
    follow: bool,
}

/// A job.
#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// Name of the sandbox
    name: String,
    /// Number of the job
    id: JobId,
}

/// Arguments of `msb jobs attach`.
#[derive(Debug, clap::Args)]
pub(crate) struct Attach {
    #[command(flatten)]
    job: One,
    /// Keys that leave a job with a terminal, such as ctrl-p,ctrl-q; "" for none
    #[arg(long, value_name = "KEYS", default_value = "ctrl-]")]
    detach_keys: String,
}

/// Arguments of `msb jobs kill`.
#[derive(Debug, clap::Args)]
pub(crate) struct Kill {
    #[command(flatten)]
    job: One,
    /// Send this signal, by its number, to the job's process group instead
    #[arg(short, long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=64))]
    signal: Option<i32>,
}

/// Arguments of `msb jobs rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Name of the sandbox
    name: String,
    /// Numbers of the jobs
    #[arg(required = true)]
    ids: Vec<JobId>,
}

/// A job in the list.
#[derive(Debug, Serialize)]
struct Entry {
    id: JobId,
    command: Vec<String>,
    pid: u32,
    state: &'static str,
    exit_code: Option<i32>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    tty: bool,
    output_bytes: u64,
    dropped_bytes: u64,
    cpu_ms: u64,
    peak_memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    out_of_memory: bool,
}

impl Entry {
    fn new(job: &JobHandle) -> Self {
        let (state, status, ended_at) = match job.state() {
            JobState::Exited { status, at, .. } => ("exited", Some(status), Some(at)),
            _ => ("running", None, None),
        };
        let usage = job.usage();
        let (output_bytes, dropped_bytes) = job.output_bytes();
        Self {
            id: job.id(),
            command: job.command().to_vec(),
            pid: job.pid(),
            state,
            exit_code: status.map(|status| status.code),
            started_at: job.started_at(),
            ended_at,
            tty: job.has_terminal(),
            output_bytes,
            dropped_bytes,
            cpu_ms: (usage.user_us + usage.system_us) / 1000,
            peak_memory_bytes: usage.peak_memory_bytes,
            memory_limit_bytes: job.limits().memory_bytes,
            out_of_memory: status.is_some_and(|status| status.out_of_memory),
        }
    }
}

/// Does what is asked; gives the exit code.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Ls(args) => list(&args).await?,
        Command::Logs(Logs { job, follow: false }) => {
            show(&find(&job).await?, JobOutputMode::Kept).await?;
        }
        Command::Logs(Logs { job, follow: true }) => {
            show(&find(&job).await?, JobOutputMode::Follow).await?;
        }
        Command::Attach(args) => {
            return attach(&args).await;
        }
        Command::Wait(args) => return wait(&args).await,
        Command::Kill(Kill { job, signal }) => {
            let job = find(&job).await?;
            match signal {
                Some(signal) => job.signal(signal).await?,
                None => job.kill().await?,
            }
        }
        Command::Rm(Rm { name, ids }) => {
            let sandbox = Sandbox::get(&name).await?.connect().await?;
            for id in ids {
                sandbox.job(id).await?.remove().await?;
                output::line(id)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(one: &One) -> anyhow::Result<JobHandle> {
    Ok(Sandbox::get(&one.name).await?.connect().await?.job(one.id).await?)
}

async fn attach(args: &Attach) -> anyhow::Result<ExitCode> {
    let mut job = find(&args.job).await?;
    if !job.has_terminal() {
        show(&job, JobOutputMode::Follow).await?;
        return Ok(report::status(Some(job.wait().await?)));
    }
    match job.attach_with(&args.detach_keys).await? {
        AttachEnd::Exited(status) => Ok(report::status(Some(status))),
        AttachEnd::Detached { job } => {
            report::note(session::detached(&args.job.name, job));
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("the session ended in a way this version does not know: {other:?}"),
    }
}

async fn list(args: &Ls) -> anyhow::Result<()> {
    let jobs = Sandbox::get(&args.name).await?.connect().await?.jobs().await?;
    let entries: Vec<Entry> = jobs.iter().map(Entry::new).collect();
    if args.format == Format::Json {
        return output::json(&entries);
    }
    let mut table = Table::new(["ID", "STATE", "CODE", "OUTPUT", "COMMAND"]);
    for entry in entries {
        table.row([
            entry.id.to_string(),
            entry.state.to_owned(),
            entry.exit_code.map_or_else(String::new, |code| code.to_string()),
            output::size(entry.output_bytes),
            entry.command.join(" "),
        ]);
    }
    output::line(table)
}

/// Passes output on. A signal ends this and not the job.
async fn show(job: &JobHandle, mode: JobOutputMode) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let mut stream = job.output(mode).await?;
    loop {
        let event = tokio::select! {
            event = stream.recv() => event?,
            interrupt = interrupts.next() => return Err(interrupt.into()),
        };
        match event {
            None => return Ok(()),
            Some(JobEvent::Stdout(bytes)) => {
                let mut stdout = std::io::stdout().lock();
                output::written(stdout.write_all(&bytes).and_then(|()| stdout.flush()))?;
            }
            Some(JobEvent::Stderr(bytes)) => {
                output::written(std::io::stderr().lock().write_all(&bytes))?;
            }
            Some(JobEvent::Gap { bytes }) => {
                report::note(format_args!("{bytes} bytes of output are missing here"));
            }
            Some(_) => {}
        }
    }
}

async fn wait(args: &One) -> anyhow::Result<ExitCode> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let mut job = find(args).await?;
    let status = tokio::select! {
        status = job.wait() => status?,
        interrupt = interrupts.next() => return Err(interrupt.into()),
    };
    if matches!(job.state(), JobState::Exited { timed_out: true, .. }) {
        report::note(format_args!("job {} was killed: its time was up", args.id));
    }
    Ok(report::status(Some(status)))
}
