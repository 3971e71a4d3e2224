//! `kill -9` of owner, supervisor and VMM at every step of every operation.
//!
//! A process of its own, the owner, does the operation. It, or the supervisor it starts, stops at the
//! step that the case names; the victim is killed there, and the others go on. Then an ordinary command
//! must find the sandbox as it was or as it was to be, and after its removal nothing may be left.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox::{
    MicrosandboxError, Sandbox, SandboxHandle, Snapshot, env,
    image::{Image, StorePart},
};
use tokio::{sync::OnceCell, time::timeout};

use self::{
    Found::{Either, New, Nothing, Old},
    Victim::{Owner, Supervisor, Vmm},
};
use crate::{
    directory,
    lifecycle::{eventually, pid_in_record, processes_of, signal},
    runtime, sandbox,
    snapshots::snapshots_left,
};

/// Longest wait for an end.
const DEADLINE: Duration = Duration::from_secs(60);

/// Set in an owner: operation, name and step.
const MSB_TEST_OWNER: &str = "MSB_TEST_OWNER";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Owner,
    Supervisor,
    Vmm,
}

/// What an ordinary command finds afterwards: of the sandbox, or of the children of a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// No sandbox of that name.
    Nothing,
    /// The sandbox that was there before, with all that was in it.
    Old,
    /// The sandbox that was to be made.
    New,
    /// A new one or none: what is killed and who hears of it first is a race.
    Either,
}

/// Operation, step, and what is found after the death of each victim.
type Case = (&'static str, &'static str, &'static [(Victim, Found)]);

const CASES: &[Case] = &[
    ("create", "create.claimed", &[(Owner, Nothing)]),
    ("create", "create.formatted", &[(Owner, Nothing)]),
    ("create", "create.defined", &[(Owner, Nothing)]),
    ("create", "supervisor.begun", &[(Owner, Nothing), (Supervisor, Nothing)]),
    ("create", "supervisor.vmm", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("create", "supervisor.hello", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("create", "supervisor.ready", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Either)]),
    ("create", "create.booted", &[(Owner, Nothing), (Supervisor, New), (Vmm, New)]),
    ("create", "create.kept", &[(Owner, New), (Supervisor, New), (Vmm, New)]),
    ("start", "start.locked", &[(Owner, Old)]),
    ("start", "start.remembered", &[(Owner, Old)]),
    ("start", "supervisor.begun", &[(Owner, Old), (Supervisor, Old)]),
    ("start", "supervisor.vmm", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("start", "supervisor.hello", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("start", "supervisor.ready", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("exec", "exec.started", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("stop", "stop.asked", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("cycle", "supervisor.stopping", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("cycle", "supervisor.recorded", &[(Owner, Old), (Supervisor, Old)]),
    ("cycle", "supervisor.unlocked", &[(Owner, Old), (Supervisor, Old)]),
    ("pause", "supervisor.paused", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("replace", "replace.stopped", &[(Owner, Old)]),
    ("replace", "replace.removed", &[(Owner, Nothing)]),
    ("replace", "create.defined", &[(Owner, Nothing)]),
    ("replace", "supervisor.begun", &[(Owner, Nothing), (Supervisor, Nothing)]),
    ("replace", "supervisor.hello", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("replace", "create.kept", &[(Owner, New), (Supervisor, New), (Vmm, New)]),
    ("remove", "remove.locked", &[(Owner, Old)]),
    ("remove", "remove.undefined", &[(Owner, Nothing)]),
    ("snapshot", "snapshot.locked", &[(Owner, Old)]),
    ("snapshot", "snapshot.copied", &[(Owner, Old)]),
    ("save", "snapshot.saved", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("save", "snapshot.moved", &[(Owner, Old)]),
    ("saving", "save.still", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("saving", "save.written", &[(Owner, Old), (Supervisor, Old), (Vmm, Old)]),
    ("restore", "create.formatted", &[(Owner, Nothing)]),
    ("revive", "create.formatted", &[(Owner, Nothing)]),
    ("revive", "supervisor.vmm", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("revive", "supervisor.hello", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("revive", "create.booted", &[(Owner, Nothing), (Supervisor, New), (Vmm, New)]),
    ("fork", "snapshot.saved", &[(Owner, Nothing), (Supervisor, Either), (Vmm, Either)]),
    ("fork", "fork.taken", &[(Owner, Nothing)]),
    ("fork", "supervisor.vmm", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("fork", "supervisor.hello", &[(Owner, Nothing), (Supervisor, Nothing), (Vmm, Nothing)]),
    ("fork", "fork.children", &[(Owner, Nothing), (Supervisor, Either), (Vmm, Either)]),
    ("fork", "fork.kept", &[(Owner, New)]),
];

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |(operation, step, deaths): &'static Case| {
        Trial::test(format!("kills::{operation}_at_{step}"), move || {
            runtime()
                .block_on(survive_all(operation, step, deaths))
                .map_err(|error| format!("{error:?}").into())
        })
    };
    CASES.iter().map(trial).collect()
}

async fn survive_all(operation: &str, step: &str, deaths: &[(Victim, Found)]) -> Result<()> {
    for &(victim, found) in deaths {
        let name = format!("{operation}-{step}-{victim:?}").replace('.', "-").to_lowercase();
        survive(operation, &name, step, victim, found)
            .await
            .with_context(|| format!("{victim:?} killed"))?;
    }
    Ok(())
}

async fn survive(
    operation: &str,
    name: &str,
    step: &str,
    victim: Victim,
    found: Found,
) -> Result<()> {
    set_up(operation, name).await?;
    let owner = Command::new(std::env::current_exe()?)
        .env(MSB_TEST_OWNER, format!("{operation} {name} {step}"))
        .stderr(Stdio::null())
        .spawn()?;
    let mut owner = Guard { owner, name };
    let owner = &mut owner.owner;
    let (stopped, subject) = stopped_process(owner, subjects(operation, name, step)).await?;
    let killed = match victim {
        Owner => owner.id(),
        Supervisor => supervisor(&subject)?,
        Vmm => only_child(supervisor(&subject)?)?,
    };
    signal("KILL", killed)?;
    if killed != stopped {
        signal("CONT", stopped)?;
    }
    // It may fail, and say so; what it must not do is to hang.
    eventually("the end of the owner", async || Ok(owner.try_wait()?.is_some())).await?;
    if operation == "fork" {
        return after_fork(name, found, victim == Owner || subject != name).await;
    }
    match (operation, victim) {
        // It goes on for whoever comes next.
        ("exec" | "save" | "saving", Owner) => {
            ensure!(find(name).await?.is_some_and(|found| found.status().is_alive()));
        }
        // Whether it had asked is not known; asking again is what one does.
        ("stop", Owner) => Sandbox::get(name).await?.stop().await?,
        _ => {
            if let Some(ending) = find(name).await? {
                let ended = timeout(DEADLINE, ending.wait_until_stopped()).await;
                ended.context("wait for its end")??;
            }
        }
    }
    if found == Nothing {
        // The next command of another test may be at it, and holds it meanwhile.
        eventually("nothing", async || Ok(find(name).await?.is_none())).await?;
    }
    match (find(name).await?, found) {
        (None, Nothing | Either) => {
            let fresh = sandbox(name).create().await.context("create it")?;
            ensure!(fresh.shell("echo fresh").await?.stdout()? == "fresh\n");
        }
        (Some(handle), Old | New | Either) => use_again(&handle, found == Old).await?,
        (handle, _) => bail!("found {handle:?}"),
    }
    if matches!(operation, "snapshot" | "save" | "saving" | "restore" | "revive") {
        no_snapshot_is_left(name).await?;
    }
    clear_away(name).await
}

/// One of whose processes stops and is killed: the sandbox, or a child of a fork that has begun to make
/// children.
fn subjects(operation: &str, name: &str, step: &str) -> Vec<String> {
    match (operation, step) {
        ("fork", "snapshot.saved" | "fork.taken" | "fork.kept") => vec![name.to_owned()],
        ("fork", _) => children(name).into(),
        _ => vec![name.to_owned()],
    }
}

fn children(name: &str) -> [String; 2] {
    [1, 2].map(|number| format!("{name}-{number}"))
}

/// The parent is as it was, there are both children or none, and it can be forked again.
async fn after_fork(name: &str, found: Found, parent_lives: bool) -> Result<()> {
    let handle = Sandbox::get(name).await?;
    if !parent_lives {
        timeout(DEADLINE, handle.wait_until_stopped()).await.context("wait for its end")??;
        Sandbox::start_detached(name).await?;
    }
    let parent = Sandbox::get(name).await?.connect().await.context("the parent runs")?;
    ensure!(parent.shell("cat /root/kept").await?.stdout()? == "kept\n");
    let mut there = 0;
    for child in children(name) {
        // Its supervisor hears of the end of its owner when that is over.
        if let Some(ending) = find(&child).await? {
            timeout(DEADLINE, ending.wait_until_stopped()).await.context("wait for its end")??;
        }
        there += usize::from(find(&child).await?.is_some());
    }
    match (there, found) {
        (0, Nothing | Either) => drop(parent.fork(children(name)).await.context("fork again")?),
        (2, New | Either) => {}
        (there, _) => bail!("{there} children of two"),
    }
    no_snapshot_is_left(name).await?;
    for child in children(name) {
        Sandbox::get(&child).await?.wait_until_stopped().await?;
        let started = Sandbox::start(&child).await?;
        ensure!(started.shell("cat /root/kept").await?.stdout()? == "kept\n");
        clear_away(&child).await?;
    }
    clear_away(name).await
}

/// Removes the snapshot, which is whole if there is one, and looks for halves of one and for machines
/// that were saved.
async fn no_snapshot_is_left(name: &str) -> Result<()> {
    if let Ok(snapshot) = Snapshot::get(name) {
        snapshot.verify().await?;
    }
    eventually("no saved machine", async || {
        let left = fs::read_dir(directory(name)).into_iter().flatten().flatten();
        let mut names = left.map(|entry| entry.file_name().to_string_lossy().into_owned());
        Ok(!names.any(|name| name.starts_with("saved-")))
    })
    .await?;
    match Snapshot::remove(name).await {
        Ok(()) | Err(MicrosandboxError::SnapshotNotFound(_)) => {}
        Err(error) => return Err(error.into()),
    }
    // Another test may be at one of its own.
    eventually("no half-made snapshot", async || {
        Ok(!snapshots_left().iter().any(|name| name.starts_with('.')))
    })
    .await
}

/// Ends the processes of a test that fails: one that is stopped would stay for good.
struct Guard<'a> {
    owner: Child,
    name: &'a str,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let _gone = self.owner.kill();
        let _reaped = self.owner.wait();
        for name in children(self.name).iter().map(String::as_str).chain([self.name]) {
            for pid in processes_of(name).unwrap_or_default() {
                let _gone = signal("KILL", pid);
            }
        }
    }
}

/// What the operation needs: a sandbox with something in it, running where it must.
async fn set_up(operation: &str, name: &str) -> Result<()> {
    if operation == "create" {
        return Ok(());
    }
    sandbox(name).define().await?;
    let disk = directory(name).join("upper.ext4");
    let used = used_disk().await?;
    let copied = Command::new("cp").arg("--sparse=always").arg(used).arg(disk).status()?;
    ensure!(copied.success(), "copy a disk");
    match operation {
        "exec" | "fork" | "save" | "stop" | "replace" => {
            Sandbox::start_detached(name).await?;
        }
        "restore" => {
            Sandbox::get(name).await?.snapshot(name).await?;
            Sandbox::remove(name).await?;
        }
        "revive" => {
            let running = Sandbox::start(name).await?;
            Snapshot::builder(name).from_sandbox(name).full().create().await?;
            running.kill().await?;
            Sandbox::remove(name).await?;
        }
        _ => {}
    }
    Ok(())
}

/// A disk on which a sandbox has written `/root/kept`: one boot for all cases.
async fn used_disk() -> Result<&'static PathBuf> {
    static DISK: OnceCell<PathBuf> = OnceCell::const_new();
    DISK.get_or_try_init(async || {
        let first = sandbox("kept").create().await?;
        ensure!(first.shell("echo kept > /root/kept").await?.status().success);
        first.stop().await?;
        Ok(directory("kept").join("upper.ext4"))
    })
    .await
}

/// The owner's part: does the operation, and stops at the step.
pub(crate) fn owner() -> Option<Result<()>> {
    let orders = env::read_text(MSB_TEST_OWNER)?;
    let orders: Vec<&str> = orders.split(' ').collect();
    let [operation, name, step] = orders[..] else { return Some(Ok(())) };
    microsandbox::stop_at(Some(step.to_owned()));
    Some(runtime().block_on(operate(operation, name)))
}

async fn operate(operation: &str, name: &str) -> Result<()> {
    match operation {
        "create" => drop(sandbox(name).create().await?),
        "start" => drop(Sandbox::start(name).await?),
        "cycle" => Sandbox::start(name).await?.stop().await?,
        "exec" => {
            let connected = Sandbox::get(name).await?.connect().await?;
            connected.shell("sleep 1").await?;
        }
        "pause" => Sandbox::start(name).await?.pause().await?,
        "stop" => Sandbox::get(name).await?.connect().await?.stop().await?,
        "replace" => drop(sandbox(name).replace().create().await?),
        "remove" => Sandbox::remove(name).await?,
        "snapshot" => drop(Sandbox::get(name).await?.snapshot(name).await?),
        // Of a sandbox whose supervisor does not stop at the step, or whose does.
        "save" | "saving" => {
            if operation == "saving" {
                Sandbox::start_detached(name).await?;
            }
            let whole = Snapshot::builder(name).from_sandbox(name).full();
            drop(whole.create().await?);
        }
        "revive" => drop(Sandbox::builder(name).from_snapshot(name).create().await?),
        "fork" => drop(Sandbox::get(name).await?.connect().await?.fork(children(name)).await?),
        "restore" => drop(Sandbox::builder(name).from_snapshot(name).memory(192).create().await?),
        other => bail!("no operation is called {other}"),
    }
    Ok(())
}

/// The process that has stopped at its step, the owner or a supervisor, and whose that is.
async fn stopped_process(owner: &mut Child, subjects: Vec<String>) -> Result<(u32, String)> {
    let mut stopped = None;
    eventually("a process at its step", async || {
        ensure!(owner.try_wait()?.is_none(), "the operation ended before its step");
        let owners = subjects.iter().map(|name| (owner.id(), name));
        let supervisors = subjects.iter().filter_map(|name| Some((supervisor(name).ok()?, name)));
        stopped = owners.chain(supervisors).find(|(pid, _)| is_stopped(*pid));
        Ok(stopped.is_some())
    })
    .await?;
    let (pid, name) = stopped.context("a process at its step")?;
    Ok((pid, name.clone()))
}

/// The supervisor of the run that is on record.
fn supervisor(name: &str) -> Result<u32> {
    Ok(pid_in_record(name, "pid")?.parse()?)
}

/// Whether a process is stopped by a signal (`proc_pid_stat(5)`, third member).
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, members)| members.starts_with('T'))
}

/// The VMM: the one child of its supervisor, whichever thread of that started it.
fn only_child(pid: u32) -> Result<u32> {
    let mut children = String::new();
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        children += &fs::read_to_string(thread?.path().join("children"))?;
    }
    children.trim().parse().with_context(|| format!("one child: {children:?}"))
}

async fn find(name: &str) -> Result<Option<SandboxHandle>> {
    match Sandbox::get(name).await {
        Ok(handle) => Ok(Some(handle)),
        Err(MicrosandboxError::SandboxNotFound(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn use_again(handle: &SandboxHandle, has_data: bool) -> Result<()> {
    let sandbox = match handle.connect().await {
        Ok(running) => running,
        Err(MicrosandboxError::SandboxNotRunning { .. }) => {
            handle.start().await.context("start it")?
        }
        Err(error) => return Err(error.into()),
    };
    if has_data {
        ensure!(sandbox.shell("cat /root/kept").await?.stdout()? == "kept\n");
    }
    Ok(sandbox.stop().await?)
}

/// Removes the sandbox, and looks for what is left.
async fn clear_away(name: &str) -> Result<()> {
    let handle = Sandbox::get(name).await?;
    handle.stop().await?;
    handle.remove().await?;
    ensure!(find(name).await?.is_none(), "a row is left");
    ensure!(!directory(name).exists(), "its directory is left");
    eventually("no process", async || Ok(processes_of(name)?.is_empty())).await?;
    eventually("no open file of it", async || Ok(open_files_below(&directory(name))? == 0)).await?;
    // Its image is as it was: nothing half made, nothing unknown, and every byte accounted for.
    let usage = Image::usage().await?;
    for part in &usage.parts {
        let is_clean = !matches!(part.part, StorePart::Other | StorePart::Unfinished);
        ensure!(is_clean || part.count == 0, "left in the image store: {part:?}");
    }
    let walked = disk_use(&directory("..").join("images"))?;
    ensure!(usage.total_bytes == walked, "{walked} bytes in the image store, told: {usage:?}");
    Ok(())
}

/// Files of a sandbox that this process, who did all the ordinary commands, has open: locks among them.
fn open_files_below(directory: &Path) -> Result<usize> {
    let open = fs::read_dir("/proc/self/fd")?.flatten();
    let open = open.filter_map(|entry| fs::read_link(entry.path()).ok());
    Ok(open.filter(|path| path.starts_with(directory)).count())
}

/// Bytes of disk below a path, as `du` counts them.
fn disk_use(path: &Path) -> Result<u64> {
    let meta = path.symlink_metadata()?;
    let mut bytes = meta.blocks() * 512;
    if meta.is_dir() {
        for entry in fs::read_dir(path)? {
            bytes += disk_use(&entry?.path())?;
        }
    }
    Ok(bytes)
}
