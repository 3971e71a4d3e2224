//! Sandboxes that stand still.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{EndReason, MicrosandboxError, Sandbox, SandboxStatus};
use tokio::time::timeout;

use crate::{
    directory,
    lifecycle::{eventually, judge_ext4, kill_9, pid_in_record},
    sandbox, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("pauses::what_runs_stands_still_and_goes_on", stands_still),
        trial("pauses::what_would_begin_is_refused_at_once", refused_at_once),
        trial("pauses::timers_do_not_run_meanwhile", timers_stand_still),
        trial("pauses::an_end_in_order_loses_nothing", ended_in_order),
        trial("pauses::one_is_killed_and_removed_as_any", killed),
        trial("pauses::an_owner_that_lets_go_ends_it", owner_lets_go),
        trial("pauses::a_vm_that_dies_meanwhile_is_told_as_such", dead_vm),
    ]
}

/// Longest that nothing may happen to a sandbox that is looked at.
const WHILE: Duration = Duration::from_millis(2500);

async fn status(name: &str) -> Result<SandboxStatus> {
    Ok(Sandbox::get(name).await?.status())
}

/// Seconds since the guest began.
async fn uptime(sandbox: &Sandbox) -> Result<f64> {
    let text = sandbox.shell("cat /proc/uptime").await?.stdout()?;
    Ok(text.split(' ').next().unwrap_or_default().parse()?)
}

async fn stands_still() -> Result<()> {
    let sandbox = sandbox("still").create().await?;
    let before = uptime(&sandbox).await?;
    let handle = Sandbox::get("still").await?;
    let mut running = sandbox.exec_stream("sleep", ["3600"]).await?;
    let began = Instant::now();
    handle.pause().await?;
    ensure!(status("still").await? == SandboxStatus::Paused);
    handle.pause().await?;
    let ended = timeout(WHILE, running.wait()).await;
    ensure!(ended.is_err(), "{ended:?}");
    sandbox.resume().await?;
    handle.resume().await?;
    let stood = began.elapsed().as_secs_f64();
    ensure!(status("still").await? == SandboxStatus::Running);
    let passed = uptime(&sandbox).await? - before;
    ensure!(passed < stood - 1.0, "{passed} s passed in the guest, {stood} s on the host");
    running.kill().await?;
    Ok(sandbox.stop().await?)
}

async fn refused_at_once() -> Result<()> {
    let sandbox = sandbox("refuser").create().await?;
    sandbox.pause().await?;
    let began = Instant::now();
    let refusals = [
        sandbox.exec("true", [""; 0]).await.map(drop),
        sandbox.ping().await.map(drop),
        sandbox.fs().read("/etc/passwd").await.map(drop),
        sandbox.metrics().await.map(drop),
        sandbox.exec_detached("true", [""; 0]).await.map(drop),
    ];
    ensure!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    for refused in refusals {
        let Err(error) = refused else { anyhow::bail!("something was begun") };
        ensure!(matches!(error, MicrosandboxError::SandboxPaused(_)), "{error:?}");
        ensure!(error.hint().as_deref() == Some("msb resume refuser"), "{:?}", error.hint());
    }
    sandbox.resume().await?;
    ensure!(sandbox.exec("true", [""; 0]).await?.status().success);
    Ok(sandbox.stop().await?)
}

async fn timers_stand_still() -> Result<()> {
    let limited = sandbox("timeless").idle_timeout(1).max_duration(20).create().await?;
    limited.pause().await?;
    let ended = timeout(WHILE, limited.wait_until_stopped()).await;
    ensure!(ended.is_err(), "it ended: {ended:?}");
    limited.resume().await?;
    let ended = timeout(Duration::from_secs(20), limited.wait_until_stopped()).await??;
    ensure!(ended.reason == Some(EndReason::Idle), "{ended:?}");
    Ok(())
}

async fn ended_in_order() -> Result<()> {
    let sandbox = sandbox("lossless").create().await?;
    sandbox.shell("echo kept > /root/kept").await?;
    sandbox.pause().await?;
    let result = sandbox.stop_with_timeout(Duration::from_secs(20)).await?;
    ensure!(result.reason == Some(EndReason::StopRequested) && !result.forced, "{result:?}");
    judge_ext4(&directory("lossless").join("upper.ext4"))?;
    let again = Sandbox::start("lossless").await?;
    ensure!(status("lossless").await? == SandboxStatus::Running);
    ensure!(again.shell("cat /root/kept").await?.stdout()? == "kept\n");
    again.pause().await?;
    again.drain().await?;
    ensure!(status("lossless").await? == SandboxStatus::Stopped);
    Ok(Sandbox::remove("lossless").await?)
}

async fn killed() -> Result<()> {
    sandbox("stiff").create().await?.detach().await;
    let handle = Sandbox::get("stiff").await?;
    handle.pause().await?;
    let removed = Sandbox::remove("stiff").await;
    ensure!(matches!(removed, Err(MicrosandboxError::SandboxStillRunning(_))), "{removed:?}");
    handle.kill().await?;
    ensure!(!status("stiff").await?.is_alive());
    Ok(Sandbox::remove("stiff").await?)
}

async fn owner_lets_go() -> Result<()> {
    let owned = sandbox("owned-still").create().await?;
    owned.pause().await?;
    drop(owned);
    eventually("the end", async || Ok(!status("owned-still").await?.is_alive())).await?;
    let run = Sandbox::get("owned-still").await?.last_run()?;
    ensure!(run.and_then(|run| run.end) == Some(EndReason::OwnerExited));
    Ok(Sandbox::remove("owned-still").await?)
}

async fn dead_vm() -> Result<()> {
    let paused = sandbox("dead-still").create().await?;
    paused.pause().await?;
    kill_9(&pid_in_record("dead-still", "vmm_pid")?)?;
    let ended = paused.wait_until_stopped().await?;
    ensure!(ended.status == SandboxStatus::Crashed, "{ended:?}");
    ensure!(ended.reason == Some(EndReason::VmmCrashed { signal: 9 }), "{ended:?}");
    Ok(Sandbox::remove("dead-still").await?)
}
