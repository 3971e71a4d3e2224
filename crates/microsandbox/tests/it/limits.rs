//! Commands that take what they can get: the sandbox still answers and the reason is told.

use std::time::Duration;

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{MicrosandboxError, RlimitResource, Sandbox};

use crate::{processes, sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("limits::memory_of_a_command_is_its_own", memory),
        trial("limits::processors_and_processes_are_counted_for_all_descendants", counted),
        trial("limits::every_resource_limit_reaches_the_program", rlimits),
        trial("limits::limits_below_which_nothing_runs_are_refused", refused),
        trial("limits::a_memory_hog_does_not_end_the_sandbox", hog),
        trial("limits::a_fork_bomb_leaves_room_for_others", fork_bomb),
        trial("limits::a_full_disk_stops_only_who_writes", full_disk),
    ]
}

/// Holds as many bytes as it is told in memory of its own.
const HOLD: &str = "exec dd if=/dev/zero of=/dev/null count=1 bs=";

async fn answers(sandbox: &Sandbox) -> Result<()> {
    ensure!(sandbox.shell("echo answered").await?.stdout()? == "answered\n");
    Ok(())
}

async fn memory() -> Result<()> {
    let sandbox = sandbox("memory-limit").create().await?;
    let hold = |bytes: &str, limit: u32| {
        let script = format!("{HOLD}{bytes}");
        sandbox.shell_with(script, move |options| options.memory_limit(limit))
    };
    let output = hold("48M", 16).await?;
    let status = output.status();
    ensure!(status.out_of_memory && status.signal == Some(9), "{output:?}");
    ensure!(status.memory_limit_bytes == Some(16 << 20), "{status:?}");
    let output = hold("8M", 16).await?;
    ensure!(output.status().success && !output.status().out_of_memory, "{output:?}");
    let peak = output.usage().peak_memory_bytes;
    ensure!((8 << 20..16 << 20).contains(&peak), "peak {peak}");
    // Others have no such limit.
    ensure!(sandbox.shell(format!("{HOLD}48M")).await?.status().success);
    sandbox.stop().await?;
    Ok(())
}

async fn counted() -> Result<()> {
    let sandbox = sandbox("cpu-limit").create().await?;
    let busy = "for i in 1 2; do (while :; do :; done) & done; sleep 2; kill -9 0";
    let output = sandbox.shell_with(busy, |options| options.cpu_limit(0.2)).await?;
    let used = output.usage().user_us + output.usage().system_us;
    ensure!(used < 900_000, "used {used} us in 2 s: {output:?}");
    let many = "for i in 1 2 3 4 5 6 7 8; do sleep 1000 & done; wait";
    let output = sandbox
        .shell_with(many, |options| options.process_limit(5).timeout(Duration::from_secs(20)))
        .await?;
    ensure!(output.stderr()?.contains("fork"), "{output:?}");
    answers(&sandbox).await?;
    sandbox.stop().await?;
    Ok(())
}

async fn rlimits() -> Result<()> {
    let sandbox = sandbox("rlimits").create().await?;
    for resource in RlimitResource::ALL.iter().filter(|it| **it != RlimitResource::Unknown) {
        // Room enough for a program, within what the kernel takes (`fs.nr_open`).
        let soft = if *resource == RlimitResource::Nofile { 1 << 10 } else { 1 << 30 };
        let output = sandbox.exec_with("cat", |options| {
            options.arg("/proc/self/limits").rlimit_range(*resource, soft, soft + 1)
        });
        let text = output.await?.stdout()?;
        let (soft, hard) = (format!(" {soft} "), format!(" {} ", soft + 1));
        let is_set = |line: &str| line.contains(&soft) && line.contains(&hard);
        ensure!(text.lines().any(is_set), "{resource:?}: {text}");
    }
    sandbox.stop().await?;
    Ok(())
}

async fn refused() -> Result<()> {
    let sandbox = sandbox("refused").create().await?;
    let none: [&str; 0] = [];
    for name in ["memory", "cpu", "processes"] {
        let refused = sandbox.exec_with("true", |options| match name {
            "memory" => options.memory_limit(0),
            "cpu" => options.cpu_limit(0.001),
            _ => options.process_limit(0),
        });
        let refused = refused.await;
        ensure!(matches!(refused, Err(MicrosandboxError::InvalidConfig(_))), "{name}: {refused:?}");
    }
    ensure!(sandbox.exec("true", none).await?.status().success);
    sandbox.stop().await?;
    Ok(())
}

async fn hog() -> Result<()> {
    let sandbox = sandbox("hog").create().await?;
    let other = sandbox.exec_stream("sleep", ["1000"]).await?;
    let output = sandbox.shell("held=0123456789; while :; do held=$held$held; done").await?;
    let status = output.status();
    ensure!(status.out_of_memory && status.memory_limit_bytes.is_none(), "{output:?}");
    answers(&sandbox).await?;
    ensure!(processes(&sandbox, "sleep 1000").await? == 1, "the other command is gone");
    drop(other);
    sandbox.stop().await?;
    Ok(())
}

async fn fork_bomb() -> Result<()> {
    let sandbox = sandbox("fork-bomb").create().await?;
    let other = sandbox.exec_stream("sleep", ["1000"]).await?;
    let limit = Duration::from_secs(5);
    let bomb = "b() { b | b & }; b; sleep 999";
    let mut bomb = sandbox.shell_stream_with(bomb, |options| options.timeout(limit)).await?;
    // While it burns.
    answers(&sandbox).await?;
    let ended = bomb.collect().await;
    ensure!(matches!(ended, Err(MicrosandboxError::ExecTimeout(_))), "{ended:?}");
    answers(&sandbox).await?;
    ensure!(processes(&sandbox, "sleep 1000").await? == 1, "the other command is gone");
    ensure!(processes(&sandbox, "b() {").await? == 0, "a part of the bomb is left");
    drop(other);
    sandbox.stop().await?;
    Ok(())
}

async fn full_disk() -> Result<()> {
    let sandbox = sandbox("full-disk").oci_upper_size(64).create().await?;
    let output = sandbox.shell("dd if=/dev/zero of=/root/big bs=1M").await?;
    ensure!(!output.status().success, "{output:?}");
    ensure!(output.stderr()?.contains("No space left on device"), "{output:?}");
    answers(&sandbox).await?;
    let output =
        sandbox.shell("rm /root/big && echo kept > /root/small && cat /root/small").await?;
    ensure!(output.stdout()? == "kept\n", "{output:?}");
    sandbox.stop().await?;
    Ok(())
}
