//! `msb metrics`: what running sandboxes use.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use clap::ValueEnum;
use microsandbox::{Sandbox, SandboxMetrics, all_sandbox_metrics};
use serde::Serialize;

use crate::{
    interrupt::Interrupts,
    output::{self, size, table::Table},
    values,
};

/// Arguments of `msb metrics`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Names of the sandboxes [default: all that run]
    names: Vec<String>,
    /// Go on until interrupted
    #[arg(short, long)]
    watch: bool,
    /// Time between two samples, with --watch
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = values::duration)]
    interval: Duration,
    /// How to write them
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How to write metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people; may change
    Table,
    /// For programs; one array, or with --watch one line a sample; see docs/cli.md
    Json,
    /// Prometheus' text format
    Prometheus,
}

type Samples = BTreeMap<String, SandboxMetrics>;

/// Shows them once, or until interrupted.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut interrupts = Interrupts::catch().context("catch signals")?;
    let mut before = Samples::new();
    loop {
        let samples = take(&args.names, &before).await?;
        show(&samples, &args)?;
        if !args.watch {
            return Ok(());
        }
        before = samples;
        tokio::select! {
            () = tokio::time::sleep(args.interval) => {}
            interrupt = interrupts.next() => return Err(interrupt.into()),
        }
    }
}

async fn take(names: &[String], before: &Samples) -> anyhow::Result<Samples> {
    let mut samples = Samples::new();
    if names.is_empty() {
        samples.extend(all_sandbox_metrics().await?);
    }
    for name in names {
        let sample = Sandbox::get(name).await?.metrics().await?;
        samples.insert(name.clone(), sample);
    }
    for (name, sample) in &mut samples {
        if let Some(before) = before.get(name) {
            *sample = sample.since(before);
        }
    }
    Ok(samples)
}

fn show(samples: &Samples, args: &Args) -> anyhow::Result<()> {
    let entries = || samples.iter().map(|(name, sample)| Entry::new(name, sample));
    match args.format {
        Format::Table => output::line(table(samples)),
        Format::Json if args.watch => {
            let line = serde_json::to_string(&entries().collect::<Vec<_>>())
                .context("write the metrics as JSON")?;
            output::line(line)
        }
        Format::Json => output::json(&entries().collect::<Vec<_>>()),
        Format::Prometheus => output::line(prometheus(samples).trim_end()),
    }
}

fn table(samples: &Samples) -> Table<7> {
    let mut table = Table::new(["NAME", "CPU", "MEMORY", "HOST MEMORY", "DISK", "READ", "WRITTEN"]);
    for (name, sample) in samples {
        table.row([
            name.clone(),
            format!("{:.1} %", sample.cpu_percent),
            format!("{} / {}", size(sample.memory_bytes), size(sample.memory_limit_bytes)),
            size(sample.host_memory_bytes),
            format!("{} / {}", size(sample.upper_bytes), size(sample.upper_limit_bytes)),
            size(sample.disk_read_bytes),
            size(sample.disk_write_bytes),
        ]);
    }
    table
}

/// A sample as JSON has it.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    name: &'a str,
    timestamp: DateTime<Utc>,
    uptime_ms: u128,
    cpu_ms: u128,
    cpu_percent: f32,
    memory_bytes: u64,
    memory_limit_bytes: u64,
    host_memory_bytes: u64,
    host_cpu_ms: u128,
    disk_read_bytes: u64,
    disk_write_bytes: u64,
    upper_bytes: u64,
    upper_limit_bytes: u64,
    upper_host_bytes: u64,
    net_rx_bytes: u64,
    net_tx_bytes: u64,
    processes: u32,
    commands: u32,
}

impl<'a> Entry<'a> {
    fn new(name: &'a str, sample: &SandboxMetrics) -> Self {
        Self {
            name,
            timestamp: sample.timestamp,
            uptime_ms: sample.uptime.as_millis(),
            cpu_ms: sample.cpu_time.as_millis(),
            cpu_percent: sample.cpu_percent,
            memory_bytes: sample.memory_bytes,
            memory_limit_bytes: sample.memory_limit_bytes,
            host_memory_bytes: sample.host_memory_bytes,
            host_cpu_ms: sample.host_cpu_time.as_millis(),
            disk_read_bytes: sample.disk_read_bytes,
            disk_write_bytes: sample.disk_write_bytes,
            upper_bytes: sample.upper_bytes,
            upper_limit_bytes: sample.upper_limit_bytes,
            upper_host_bytes: sample.upper_host_bytes,
            net_rx_bytes: sample.net_rx_bytes,
            net_tx_bytes: sample.net_tx_bytes,
            processes: sample.processes,
            commands: sample.commands,
        }
    }
}

/// Name without prefix, type, help, and the value of a sample.
type Series = (&'static str, &'static str, &'static str, fn(&SandboxMetrics) -> f64);

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
const SERIES: &[Series] = &[
    ("uptime_seconds", "gauge", "Time since the guest's boot.", |s| s.uptime.as_secs_f64()),
    ("cpu_seconds_total", "counter", "Processor time of the guest.", |s| s.cpu_time.as_secs_f64()),
    ("memory_bytes", "gauge", "Memory in use in the guest.", |s| s.memory_bytes as f64),
    ("memory_limit_bytes", "gauge", "Memory of the guest.", |s| s.memory_limit_bytes as f64),
    ("host_memory_bytes", "gauge", "Memory its processes have on the host.", |s| {
        s.host_memory_bytes as f64
    }),
    ("host_cpu_seconds_total", "counter", "Processor time on the host.", |s| {
        s.host_cpu_time.as_secs_f64()
    }),
    ("disk_read_bytes_total", "counter", "Read from its disks.", |s| s.disk_read_bytes as f64),
    ("disk_written_bytes_total", "counter", "Written to its disks.", |s| s.disk_write_bytes as f64),
    ("upper_bytes", "gauge", "In use of its writable file system.", |s| s.upper_bytes as f64),
    ("upper_limit_bytes", "gauge", "Size of its writable file system.", |s| {
        s.upper_limit_bytes as f64
    }),
    ("upper_host_bytes", "gauge", "Its writable disk on the host.", |s| s.upper_host_bytes as f64),
    ("processes", "gauge", "Processes of the guest.", |s| f64::from(s.processes)),
    ("commands", "gauge", "Commands under way.", |s| f64::from(s.commands)),
];

/// Text format 0.0.4 (prometheus.io, "Exposition formats"). Names of sandboxes need no escapes.
fn prometheus(samples: &Samples) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for (name, kind, help, value) in SERIES {
        let _infallible = writeln!(text, "# HELP microsandbox_{name} {help}");
        let _infallible = writeln!(text, "# TYPE microsandbox_{name} {kind}");
        for (sandbox, sample) in samples {
            let value = value(sample);
            let _infallible =
                writeln!(text, "microsandbox_{name}{{sandbox=\"{sandbox}\"}} {value}");
        }
    }
    text
}
