//! What sandboxes use: asked for when somebody wants to know, never sampled in between.

use std::{collections::HashMap, time::Duration};

use chrono::{DateTime, Utc};
use futures_util::{Stream, future::join_all, stream};
use microsandbox_runtime::{AgentClient, HostUsage, SandboxDir, wire::Metrics};

use crate::{MicrosandboxError, MicrosandboxResult, Sandbox, SandboxStatus};

/// What a sandbox uses, in the guest and on the host. Sums count from its boot.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct SandboxMetrics {
    /// When it was asked.
    pub timestamp: DateTime<Utc>,
    /// Time since the guest's boot.
    pub uptime: Duration,
    /// Processor time of the guest's processes, all its processors together.
    pub cpu_time: Duration,
    /// Share of one processor, per cent: since the sample before in a stream, else since the boot.
    pub cpu_percent: f32,
    /// Memory in use in the guest: what it has less what a new program could have.
    pub memory_bytes: u64,
    /// Memory the guest has.
    pub memory_limit_bytes: u64,
    /// Memory its processes on the host have in use.
    pub host_memory_bytes: u64,
    /// Processor time its processes on the host have taken.
    pub host_cpu_time: Duration,
    /// Read from its disks.
    pub disk_read_bytes: u64,
    /// Written to its disks.
    pub disk_write_bytes: u64,
    /// In use of its writable file system.
    pub upper_bytes: u64,
    /// Size of its writable file system.
    pub upper_limit_bytes: u64,
    /// What its writable disk takes on the host.
    pub upper_host_bytes: u64,
    /// Received from the network; a sandbox has none yet.
    pub net_rx_bytes: u64,
    /// Sent to the network; a sandbox has none yet.
    pub net_tx_bytes: u64,
    /// Processes and kernel threads of the guest.
    pub processes: u32,
    /// Commands and detached jobs under way.
    pub commands: u32,
}

impl SandboxMetrics {
    fn new(guest: &Metrics, host: HostUsage) -> Self {
        let (uptime, cpu_time) =
            (Duration::from_millis(guest.uptime_ms), Duration::from_millis(guest.cpu_ms));
        Self {
            timestamp: Utc::now(),
            uptime,
            cpu_time,
            cpu_percent: percent(cpu_time, uptime),
            memory_bytes: guest.memory_total_bytes.saturating_sub(guest.memory_available_bytes),
            memory_limit_bytes: guest.memory_total_bytes,
            host_memory_bytes: host.memory_bytes,
            host_cpu_time: host.cpu,
            disk_read_bytes: guest.disk_read_bytes,
            disk_write_bytes: guest.disk_written_bytes,
            upper_bytes: guest.upper_used_bytes,
            upper_limit_bytes: guest.upper_total_bytes,
            upper_host_bytes: host.disk_bytes,
            net_rx_bytes: 0,
            net_tx_bytes: 0,
            processes: guest.processes,
            commands: guest.commands,
        }
    }

    /// The same sample, its share of a processor counted from an earlier one of the same sandbox.
    #[must_use]
    pub fn since(mut self, before: &Self) -> Self {
        let used = self.cpu_time.saturating_sub(before.cpu_time);
        self.cpu_percent = percent(used, self.uptime.saturating_sub(before.uptime));
        self
    }
}

fn percent(used: Duration, of: Duration) -> f32 {
    if of.is_zero() { 0.0 } else { used.as_secs_f32() * 100.0 / of.as_secs_f32() }
}

/// Asks the guest and looks at the host.
pub(crate) async fn sample(
    client: &AgentClient,
    dir: &SandboxDir,
) -> Result<SandboxMetrics, microsandbox_runtime::Error> {
    let guest = client.metrics().await?;
    let host = dir.host_usage()?.unwrap_or_default();
    Ok(SandboxMetrics::new(&guest, host))
}

/// Samples one `interval` apart, the first at once. It ends after the first error.
pub(crate) fn samples(
    sandbox: Sandbox,
    interval: Duration,
) -> impl Stream<Item = MicrosandboxResult<SandboxMetrics>> + Send + 'static {
    let mut timer = tokio::time::interval(interval.max(Duration::from_millis(1)));
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    stream::unfold(Some((sandbox, timer, None)), |state| async {
        let (sandbox, mut timer, before): (_, _, Option<SandboxMetrics>) = state?;
        timer.tick().await;
        match sandbox.metrics().await {
            Ok(sample) => {
                let sample = before.map_or(sample, |before| sample.since(&before));
                Some((Ok(sample), Some((sandbox, timer, Some(sample)))))
            }
            Err(error) => Some((Err(error), None)),
        }
    })
}

/// What every sandbox that takes commands uses, by name. One that ends meanwhile is left out.
///
/// # Errors
/// [`MicrosandboxError::Database`] when the catalogue cannot be read.
pub async fn all_sandbox_metrics() -> MicrosandboxResult<HashMap<String, SandboxMetrics>> {
    let running = Sandbox::list().await?.into_iter();
    let running = running.filter(|handle| handle.status() == SandboxStatus::Running);
    let samples = running.map(|handle| async move {
        let sample = handle.metrics().await;
        (handle.name().to_owned(), sample)
    });
    let mut all = HashMap::new();
    for (name, sample) in join_all(samples).await {
        match sample {
            Ok(sample) => drop(all.insert(name, sample)),
            Err(
                MicrosandboxError::SandboxNotRunning { .. }
                | MicrosandboxError::SandboxEnded { .. },
            ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}
