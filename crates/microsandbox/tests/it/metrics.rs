//! What sandboxes use, as the guest and the host have it.

use std::{pin::pin, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use libtest_mimic::Trial;
use microsandbox::{MicrosandboxError, Sandbox, all_sandbox_metrics};

use crate::{sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("metrics::what_commands_do_shows", shows),
        trial("metrics::a_stream_ends_with_its_sandbox", stream_ends),
    ]
}

async fn shows() -> Result<()> {
    let sandbox = sandbox("measured").create().await?;
    let before = sandbox.metrics().await?;
    ensure!(before.commands == 0 && before.processes > 1, "{before:?}");
    ensure!((150 << 20..192 << 20).contains(&before.memory_limit_bytes), "{before:?}");
    ensure!(before.memory_bytes > 0 && before.memory_bytes < before.memory_limit_bytes);
    ensure!(before.host_memory_bytes > 10 << 20 && before.upper_host_bytes > 0, "{before:?}");

    let script = "dd if=/dev/urandom of=/root/f bs=1M count=8 && sync && sleep 1000";
    let mut running = sandbox.shell_stream(script).await?;
    // What `dd` tells comes when it has written.
    running.recv().await.context("an event")?;
    let after = loop {
        let sample = sandbox.metrics().await?.since(&before);
        if sample.disk_write_bytes >= before.disk_write_bytes + (8 << 20) {
            break sample;
        }
    };
    ensure!(after.commands == 1, "{after:?}");
    ensure!(after.cpu_time > before.cpu_time && after.cpu_percent > 0.0, "{after:?}");
    ensure!(after.upper_bytes >= before.upper_bytes + (8 << 20), "{after:?}");
    ensure!(after.host_cpu_time > before.host_cpu_time, "{after:?}");
    ensure!(all_sandbox_metrics().await?.contains_key("measured"));
    sandbox.kill().await?;
    let stopped = Sandbox::get("measured").await?.metrics().await;
    ensure!(matches!(stopped, Err(MicrosandboxError::SandboxNotRunning { .. })), "{stopped:?}");
    Ok(())
}

async fn stream_ends() -> Result<()> {
    let sandbox = sandbox("streamed").create().await?;
    let mut samples = pin!(sandbox.metrics_stream(Duration::from_millis(20)));
    let first = samples.next().await.context("a first sample")??;
    let second = samples.next().await.context("a second sample")??;
    ensure!(second.uptime > first.uptime);
    sandbox.kill().await?;
    while let Some(Ok(_)) = samples.next().await {}
    ensure!(samples.next().await.is_none(), "a stream went on after its error");
    Ok(())
}
