//! Ends that a definition sets, and what is remembered of ends.

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox::{EndReason, MicrosandboxError, Sandbox, SandboxFilter, SandboxStatus};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    directory,
    lifecycle::{eventually, pid_in_record},
    sandbox, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ends::an_idle_sandbox_is_stopped_and_a_busy_one_is_not", idle),
        trial("ends::a_sandbox_is_stopped_when_its_time_is_up", time_is_up),
        trial("ends::runs_are_remembered_when_their_sandbox_is_gone", remembered),
        trial("ends::a_draining_sandbox_finishes_and_begins_nothing", drains),
        trial("ends::a_guest_that_resets_itself_is_told_from_one_that_ends", resets),
        trial("ends::a_vmm_that_is_told_to_end_is_told_from_a_guest_that_ends", vmm_is_told),
        trial("ends::prune_removes_what_does_not_run", prune),
    ]
}

async fn idle() -> Result<()> {
    let sandbox = sandbox("idler").idle_timeout(1).create().await?;
    let busy = sandbox.shell("sleep 3; echo done").await?;
    ensure!(busy.stdout()? == "done\n");
    // A job has no client, and still is something under way.
    let mut job = sandbox.exec_detached("sleep", ["3"]).await?;
    ensure!(job.wait().await?.code == 0);
    let result = sandbox.wait_until_stopped().await?;
    ensure!(result.reason == Some(EndReason::Idle) && !result.forced, "{result:?}");
    ensure!(Sandbox::get("idler").await?.status() == SandboxStatus::Stopped);
    Ok(())
}

async fn time_is_up() -> Result<()> {
    let sandbox = sandbox("short-lived").max_duration(1).ephemeral(true).create().await?;
    let interrupted = sandbox.shell("sleep 1000").await;
    let result = sandbox.wait_until_stopped().await?;
    ensure!(result.reason == Some(EndReason::MaxDuration), "{result:?} {interrupted:?}");
    ensure!(!directory("short-lived").exists());
    // Whoever asks later is told the same.
    ensure!(sandbox.wait_until_stopped().await? == result);
    Ok(())
}

async fn remembered() -> Result<()> {
    let first = sandbox("bygone").create().await?;
    first.stop().await?;
    let second = Sandbox::start("bygone").await?;
    ensure!(second.ping().await?.as_secs() < 60);
    second.kill().await?;
    Sandbox::remove("bygone").await?;
    let runs = Sandbox::history("bygone").await?;
    let ends: Vec<_> = runs.iter().map(|run| (&run.reason, run.forced)).collect();
    ensure!(
        ends == [(&EndReason::StopRequested, true), (&EndReason::StopRequested, false)],
        "{runs:?}"
    );
    ensure!(runs[0].started_at > runs[1].ended_at);
    Ok(())
}

async fn drains() -> Result<()> {
    let sandbox = sandbox("drains").create().await?;
    let mut running = sandbox.shell_stream("sleep 2; echo finished").await?;
    let draining = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.drain().await }
    });
    eventually("draining", async || {
        Ok(Sandbox::get("drains").await?.status() == SandboxStatus::Draining)
    })
    .await?;
    let refused = sandbox.shell("true").await;
    ensure!(matches!(refused, Err(MicrosandboxError::ExecFailed(_))), "{refused:?}");
    ensure!(running.collect().await?.stdout()? == "finished\n");
    draining.await??;
    let result = sandbox.wait_until_stopped().await?;
    ensure!(result.reason == Some(EndReason::StopRequested) && !result.forced, "{result:?}");
    Ok(())
}

async fn resets() -> Result<()> {
    let sandbox = sandbox("resets").create().await?;
    let lost = sandbox.shell("echo b > /proc/sysrq-trigger; sleep 1000").await;
    let result = sandbox.wait_until_stopped().await?;
    ensure!(result.reason == Some(EndReason::GuestReset), "{result:?} {lost:?}");
    Ok(())
}

async fn vmm_is_told() -> Result<()> {
    let sandbox = sandbox("vmm-told").create().await?;
    let pid: i32 = pid_in_record("vmm-told", "vmm_pid")?.parse()?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let result = sandbox.wait_until_stopped().await?;
    let Some(EndReason::VmmFailed { code: 0, detail }) = &result.reason else {
        bail!("{result:?}");
    };
    ensure!(detail.contains("host-signal"), "{detail}");
    Ok(())
}

async fn prune() -> Result<()> {
    let labelled = |name| sandbox(name).label("suite", "prune");
    let stays = labelled("stays").create().await?;
    labelled("goes").create().await?.stop().await?;
    let chosen = || SandboxFilter::new().label("suite", "prune");
    ensure!(Sandbox::prune(chosen()).await? == ["goes"]);
    stays.stop().await?;
    ensure!(Sandbox::prune(chosen()).await? == ["stays"]);
    ensure!(Sandbox::list_with(chosen()).await?.is_empty());
    Ok(())
}
