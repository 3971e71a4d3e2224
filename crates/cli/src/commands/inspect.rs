//! `msb inspect`: all that is known of a sandbox. The fields are described in `docs/cli.md`.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use microsandbox::{
    Accel, BootMode, BootTimes, ConfinementRecord, EndReason, LogSource, Origin, PullPolicy,
    RootfsSource, RunInfo, Sandbox, SandboxHandle, SandboxStatus, VmmKind,
};
use serde::Serialize;

use crate::output;

/// Arguments of `msb inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
    /// How to write it
    #[arg(long, value_enum, default_value_t = JsonFormat::Json)]
    format: JsonFormat,
}

/// There is one form.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum JsonFormat {
    /// For programs; see docs/cli.md
    Json,
}

#[derive(Debug, Serialize)]
struct Inspection {
    name: String,
    status: SandboxStatus,
    created_at: Option<DateTime<Utc>>,
    updated_at: Option<DateTime<Utc>>,
    directory: PathBuf,
    logs: Logs,
    config: Config,
    last_run: Option<LastRun>,
}

#[derive(Debug, Serialize)]
struct Logs {
    exec: PathBuf,
    kernel: PathBuf,
    runtime: PathBuf,
}

#[derive(Debug, Serialize)]
struct Config {
    image: String,
    manifest_digest: Option<String>,
    from_snapshot: Option<String>,
    pull_policy: PullPolicy,
    upper_size_mib: Option<u32>,
    cpus: u8,
    memory_mib: u32,
    env: Vec<String>,
    workdir: Option<String>,
    user: Option<String>,
    shell: Option<String>,
    hostname: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    labels: BTreeMap<String, String>,
    ephemeral: bool,
    boot: Option<BootMode>,
}

#[derive(Debug, Serialize)]
struct LastRun {
    vmm: VmmKind,
    accel: Accel,
    confinement: Option<ConfinementRecord>,
    started_at: DateTime<Utc>,
    kernel_release: Option<String>,
    origin: Option<Origin>,
    boot: BootTimes,
    end: Option<End>,
}

#[derive(Debug, Serialize)]
struct End {
    #[serde(flatten)]
    reason: EndReason,
    message: String,
    forced: bool,
    console_tail: Option<String>,
}

impl Inspection {
    fn new(handle: &SandboxHandle) -> anyhow::Result<Self> {
        let config = handle.config()?;
        let RootfsSource::Oci(image) = config.image;
        Ok(Self {
            name: handle.name().to_owned(),
            status: handle.status(),
            created_at: handle.created_at(),
            updated_at: handle.updated_at(),
            directory: handle.path().to_owned(),
            logs: Logs {
                exec: handle.log_path(LogSource::Stdout),
                kernel: handle.log_path(LogSource::Kernel),
                runtime: handle.log_path(LogSource::Runtime),
            },
            config: Config {
                image: image.reference,
                manifest_digest: config.manifest_digest,
                from_snapshot: config.snapshot,
                pull_policy: config.pull_policy,
                upper_size_mib: image.upper_size_mib,
                cpus: config.cpus,
                memory_mib: config.memory_mib,
                env: config.env.iter().map(|(key, value)| format!("{key}={value}")).collect(),
                workdir: config.workdir,
                user: config.user,
                shell: config.shell,
                hostname: config.hostname,
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                labels: config.labels,
                ephemeral: config.ephemeral,
                boot: config.boot,
            },
            last_run: handle.last_run()?.map(LastRun::from),
        })
    }
}

impl From<RunInfo> for LastRun {
    fn from(run: RunInfo) -> Self {
        let (forced, console_tail) = (run.forced, run.console_tail);
        let message = |reason: &EndReason| reason.to_string();
        let end = |reason| End { message: message(&reason), reason, forced, console_tail };
        Self {
            vmm: run.vmm,
            accel: run.accel,
            confinement: run.confinement,
            started_at: run.started_at,
            kernel_release: run.kernel_release,
            origin: run.origin,
            boot: run.boot,
            end: run.end.map(end),
        }
    }
}

/// Shows it.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let JsonFormat::Json = args.format;
    let handle = Sandbox::get(&args.name).await?;
    let inspection = Inspection::new(&handle).with_context(|| format!("inspect {}", args.name))?;
    output::json(&inspection)
}
