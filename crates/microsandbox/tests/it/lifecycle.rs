//! Lives and deaths of sandboxes, by every hand that can cause them.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox::{EndReason, MicrosandboxError, Sandbox, SandboxStatus};

use crate::{directory, sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("lifecycle::what_was_written_survives_stop_and_start", written_survives),
        trial("lifecycle::an_owner_that_lets_go_ends_the_sandbox", owner_lets_go),
        trial("lifecycle::a_detached_sandbox_lives_on", detached_lives_on),
        trial("lifecycle::a_creation_that_is_given_up_leaves_nothing", given_up),
        trial("lifecycle::a_name_is_had_once", name_is_had_once),
        trial("lifecycle::a_killed_supervisor_takes_the_vm_along", killed_supervisor),
        trial("lifecycle::a_killed_vm_is_told_as_such", killed_vm),
        trial("lifecycle::a_panicking_guest_is_told_as_such", panicking_guest),
        trial("lifecycle::a_guest_without_memory_is_told_as_such", guest_without_memory),
        trial("lifecycle::an_ephemeral_sandbox_is_gone_after_its_run", ephemeral_is_gone),
    ]
}

/// Waits for a condition, with a deadline; the processes waited for send this one no event.
pub(crate) async fn eventually(
    what: &str,
    mut holds: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while !holds().await? {
        ensure!(began.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn ends_with(name: &str, expected: SandboxStatus) -> Result<Option<EndReason>> {
    eventually("the end", async || Ok(!Sandbox::get(name).await?.status().is_alive())).await?;
    let handle = Sandbox::get(name).await?;
    ensure!(handle.status() == expected, "{:?}", handle.status());
    Ok(handle.last_run()?.and_then(|run| run.end))
}

/// Ids of the processes whose command line has `name` in it.
pub(crate) fn processes_of(name: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|pid| pid.parse().ok()) else {
            continue;
        };
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command_line = String::from_utf8_lossy(&command_line);
        if command_line.contains(&format!("/{name}/"))
            || command_line.contains(&format!("\0{name}\0"))
        {
            found.push(pid);
        }
    }
    Ok(found)
}

fn record(name: &str) -> Result<String> {
    let path = directory(name).join("run.json");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// A number in the run record; the record's format is documented.
pub(crate) fn pid_in_record(name: &str, member: &str) -> Result<String> {
    let record = record(name)?;
    let line = record.lines().find(|line| line.contains(&format!("\"{member}\"")));
    let digits: String = line.unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
    ensure!(!digits.is_empty(), "no {member} in {record}");
    Ok(digits)
}

pub(crate) fn signal(signal: &str, pid: u32) -> Result<()> {
    let status = Command::new("kill").args(["-s", signal, &pid.to_string()]).status()?;
    ensure!(status.success(), "kill -s {signal} {pid}");
    Ok(())
}

pub(crate) fn kill_9(pid: &str) -> Result<()> {
    signal("KILL", pid.parse()?)
}

async fn written_survives() -> Result<()> {
    let first = sandbox("survivor").create().await?;
    ensure!(first.shell("echo kept > /root/f").await?.status().success);
    first.stop().await?;
    ensure!(Sandbox::get("survivor").await?.status() == SandboxStatus::Stopped);
    let second = Sandbox::start("survivor").await?;
    ensure!(second.shell("cat /root/f").await?.stdout()? == "kept\n");
    let still_running = Sandbox::remove("survivor").await;
    ensure!(matches!(still_running, Err(MicrosandboxError::SandboxStillRunning(_))));
    let result = second.stop_with_timeout(Duration::from_secs(10)).await?;
    ensure!(result.reason == Some(EndReason::StopRequested) && !result.forced, "{result:?}");
    let upper = directory("survivor").join("upper.ext4");
    judge_ext4(&upper)?;
    Sandbox::remove("survivor").await?;
    ensure!(!directory("survivor").exists());
    Ok(())
}

pub(crate) fn judge_ext4(upper: &Path) -> Result<()> {
    let judged = Command::new("e2fsck").args(["-fn"]).arg(upper).output().context("run e2fsck")?;
    ensure!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stdout));
    Ok(())
}

/// Ends sandboxes right after they were made: in order, by a loss of power, by the death of the
/// supervisor. Their disks are whole once the journal is replayed.
pub(crate) async fn end_at_once(
    name: &str,
    make: impl AsyncFn(&str) -> Result<Sandbox>,
) -> Result<()> {
    for (end, victim) in [("stop", None), ("power", Some("vmm_pid")), ("killed", Some("pid"))] {
        let name = format!("{name}-{end}");
        let made = make(&name).await?;
        match victim {
            None => made.stop().await?,
            Some(victim) => {
                kill_9(&pid_in_record(&name, victim)?)?;
                made.wait_until_stopped().await?;
                eventually("no process", async || Ok(processes_of(&name)?.is_empty())).await?;
                replay_journal(&directory(&name).join("upper.ext4"))?;
            }
        }
        judge_ext4(&directory(&name).join("upper.ext4")).context(name.clone())?;
        Sandbox::remove(&name).await?;
    }
    Ok(())
}

fn replay_journal(upper: &Path) -> Result<()> {
    let replay = Command::new("e2fsck").args(["-p", "-E", "journal_only"]).arg(upper).output()?;
    ensure!(replay.status.code() < Some(2), "{}", String::from_utf8_lossy(&replay.stdout));
    Ok(())
}

async fn owner_lets_go() -> Result<()> {
    drop(sandbox("let-go").create().await?);
    ensure!(ends_with("let-go", SandboxStatus::Stopped).await? == Some(EndReason::OwnerExited));
    Ok(())
}

async fn detached_lives_on() -> Result<()> {
    sandbox("lives-on").create().await?.detach().await;
    let connected = Sandbox::get("lives-on").await?.connect().await?;
    ensure!(!connected.owns_lifecycle());
    ensure!(connected.shell("echo alive").await?.stdout()? == "alive\n");
    drop(connected);
    let handle = Sandbox::get("lives-on").await?;
    ensure!(handle.status() == SandboxStatus::Running);
    handle.kill().await?;
    ensure!(ends_with("lives-on", SandboxStatus::Stopped).await? == Some(EndReason::StopRequested));
    Ok(())
}

async fn given_up() -> Result<()> {
    let creation = tokio::spawn(sandbox("given-up").create());
    eventually("the VMM", async || Ok(processes_of("given-up")?.len() >= 2)).await?;
    creation.abort();
    eventually("nothing left", async || {
        Ok(!directory("given-up").exists() && processes_of("given-up")?.is_empty())
    })
    .await?;
    let gone = Sandbox::get("given-up").await;
    ensure!(matches!(gone, Err(MicrosandboxError::SandboxNotFound(_))), "{gone:?}");
    Ok(())
}

async fn name_is_had_once() -> Result<()> {
    let creations = (0..3).map(|_| tokio::spawn(sandbox("once").create()));
    let (mut made, mut refused) = (Vec::new(), 0);
    for creation in creations.collect::<Vec<_>>() {
        match creation.await? {
            Ok(sandbox) => made.push(sandbox),
            Err(MicrosandboxError::SandboxAlreadyExists(_)) => refused += 1,
            Err(error) => bail!(error),
        }
    }
    ensure!((made.len(), refused) == (1, 2));
    let replaced = sandbox("once").replace().create().await?;
    ensure!(replaced.shell("echo new").await?.stdout()? == "new\n");
    replaced.stop().await?;
    Ok(())
}

async fn killed_supervisor() -> Result<()> {
    let sandbox = sandbox("orphan").create().await?;
    kill_9(&pid_in_record("orphan", "pid")?)?;
    sandbox.wait().await?;
    let end = ends_with("orphan", SandboxStatus::Crashed).await?;
    ensure!(end == Some(EndReason::SupervisorKilled), "{end:?}");
    eventually("no process", async || Ok(processes_of("orphan")?.is_empty())).await?;
    let restarted = Sandbox::start("orphan").await?;
    ensure!(restarted.shell("echo again").await?.stdout()? == "again\n");
    restarted.stop().await?;
    Ok(())
}

async fn killed_vm() -> Result<()> {
    let sandbox = sandbox("beheaded").create().await?;
    let mut running = sandbox.exec_stream("sleep", ["1000"]).await?;
    kill_9(&pid_in_record("beheaded", "vmm_pid")?)?;
    let result = sandbox.wait_until_stopped().await?;
    ensure!(result.status == SandboxStatus::Crashed);
    ensure!(result.reason == Some(EndReason::VmmCrashed { signal: 9 }), "{result:?}");
    ensure!(running.wait().await.is_err(), "a command ended without an end");
    ensure!(sandbox.shell("true").await.is_err(), "a command ran in a dead sandbox");
    Ok(())
}

async fn panicking_guest() -> Result<()> {
    let sandbox = sandbox("panics").create().await?;
    let lost = sandbox.shell("echo c > /proc/sysrq-trigger; sleep 1000").await;
    let result = sandbox.wait_until_stopped().await?;
    match result.reason {
        Some(EndReason::KernelPanic { line }) => ensure!(line.contains("Kernel panic"), "{line}"),
        other => bail!("{other:?} after {lost:?}"),
    }
    ensure!(result.status == SandboxStatus::Crashed);
    Ok(())
}

async fn guest_without_memory() -> Result<()> {
    let sandbox = sandbox("starved").create().await?;
    let script = "echo 2 > /proc/sys/vm/panic_on_oom; tail /dev/zero";
    let lost = sandbox.shell(script).await;
    let result = sandbox.wait_until_stopped().await?;
    match result.reason {
        Some(EndReason::GuestOutOfMemory { line }) => {
            ensure!(line.contains("Kernel panic"), "{line}");
        }
        other => bail!("{other:?} after {lost:?}"),
    }
    ensure!(result.status == SandboxStatus::Crashed);
    Ok(())
}

async fn ephemeral_is_gone() -> Result<()> {
    let sandbox = sandbox("mayfly").ephemeral(true).create().await?;
    ensure!(sandbox.shell("true").await?.status().success);
    sandbox.kill().await?;
    ensure!(!directory("mayfly").exists());
    ensure!(!Sandbox::list().await?.iter().any(|handle| handle.name() == "mayfly"));
    Ok(())
}
