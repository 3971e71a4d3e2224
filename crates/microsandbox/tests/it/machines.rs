//! Machines that were saved while they ran: restored, forked, damaged.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{
    MicrosandboxError, PullProgress, Sandbox, SandboxStatus, Snapshot, env, image::Image,
};

use crate::{
    MSB_TEST_IMAGES, directory,
    lifecycle::{end_at_once, eventually, judge_ext4},
    processes, sandbox,
    snapshots::snapshots_left,
    trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("machines::one_goes_on_twice_and_so_does_the_original", restored_twice),
        trial("machines::a_paused_one_is_saved_and_stays_paused", saved_while_paused),
        trial("machines::children_go_on_from_where_their_parent_is", forked),
        trial("machines::all_children_or_none", all_or_none),
        trial("machines::a_damaged_one_never_goes_on", damaged),
        trial("machines::one_that_ends_at_once_loses_nothing", ended_at_once),
        trial("machines::a_python_process_goes_on_in_all_of_them", python),
    ]
}

/// A process that keeps a secret and a count in its memory, and tells them.
const KEEPER: &str = "read s < /proc/sys/kernel/random/uuid; n=0; while true; do n=$((n+1)); \
                      echo $s $n > /root/told.new; mv /root/told.new /root/told; done";

/// What the keeper of a sandbox tells.
async fn told(sandbox: &Sandbox) -> Result<(String, u64)> {
    let text = sandbox.shell("cat /root/told").await?.stdout()?;
    let (secret, count) = text.trim().split_once(' ').context(text.clone())?;
    Ok((secret.to_owned(), count.parse()?))
}

async fn keeper(name: &str) -> Result<Sandbox> {
    let sandbox = sandbox(name).create().await?;
    sandbox.exec_detached("sh", ["-c", KEEPER]).await?;
    eventually("the keeper", async || Ok(told(&sandbox).await.is_ok())).await?;
    Ok(sandbox)
}

/// The keeper goes on counting from `before`, with the same secret.
async fn goes_on(sandbox: &Sandbox, before: &(String, u64)) -> Result<()> {
    let first = told(sandbox).await?;
    ensure!(first.0 == before.0 && first.1 >= before.1, "{first:?} after {before:?}");
    eventually("another count", async || Ok(told(sandbox).await?.1 > first.1)).await
}

/// What no two machines may have in common.
async fn identity(sandbox: &Sandbox) -> Result<Vec<String>> {
    let script = "hostname; cat /etc/machine-id /proc/sys/kernel/random/boot_id; \
                  head -c 32 /dev/urandom | od -An -tx1";
    let text = sandbox.shell(script).await?.stdout()?;
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    ensure!(lines.len() == 5, "{text}");
    Ok(lines)
}

async fn all_differ(sandboxes: &[&Sandbox]) -> Result<()> {
    let mut identities = Vec::new();
    for sandbox in sandboxes {
        identities.push(identity(sandbox).await?);
    }
    for part in 0..identities[0].len() {
        let parts: BTreeSet<&String> = identities.iter().map(|lines| &lines[part]).collect();
        ensure!(parts.len() == sandboxes.len(), "{identities:?}");
    }
    Ok(())
}

async fn put_away(sandbox: &Sandbox) -> Result<()> {
    sandbox.stop().await?;
    judge_ext4(&directory(sandbox.name()).join("upper.ext4"))?;
    Ok(Sandbox::remove(sandbox.name()).await?)
}

fn nothing_is_left(name: &str) -> Result<()> {
    let entries = fs::read_dir(directory(name))?.flatten();
    let saved = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("saved-");
    ensure!(!entries.into_iter().any(|entry| saved(&entry)), "a saved machine is left");
    Ok(())
}

async fn restored_twice() -> Result<()> {
    let original = keeper("keeper").await?;
    let attached = original.exec_stream("sleep", ["7777"]).await?;
    eventually("the command", async || Ok(processes(&original, "sleep 7777").await? == 1)).await?;
    let before = told(&original).await?;
    let handle = Sandbox::get("keeper").await?;
    let disk_only = handle.snapshot("kept").await;
    ensure!(matches!(disk_only, Err(MicrosandboxError::SnapshotSandboxRunning(_))));
    let taken = Snapshot::builder("kept").from_sandbox("keeper").full().create().await?;
    ensure!(taken.is_full() && taken.stood_still().is_some());
    nothing_is_left("keeper")?;
    let smaller = Sandbox::builder("keeper-1").from_snapshot("kept").env("A", "b").create().await;
    ensure!(matches!(smaller, Err(MicrosandboxError::InvalidConfig(_))), "{smaller:?}");
    let first = Sandbox::builder("keeper-1").from_snapshot("kept").create().await?;
    let second = Sandbox::builder("keeper-2").from_snapshot("kept").create().await?;
    for sandbox in [&first, &second, &original] {
        goes_on(sandbox, &before).await?;
    }
    all_differ(&[&original, &first, &second]).await?;
    ensure!(first.config().memory_mib == 192, "a machine keeps its size");
    for (sandbox, commands) in [(&original, 1), (&first, 0), (&second, 0)] {
        let found = processes(sandbox, "sleep 7777").await?;
        ensure!(found == commands, "{found} commands of clients in {}", sandbox.name());
        ensure!(sandbox.jobs().await?.len() == 1);
    }
    drop(attached);
    taken.verify().await?;
    for sandbox in [&first, &second, &original] {
        put_away(sandbox).await?;
    }
    Ok(Snapshot::remove("kept").await?)
}

async fn saved_while_paused() -> Result<()> {
    let original = keeper("paused-keeper").await?;
    let before = told(&original).await?;
    original.pause().await?;
    Snapshot::builder("paused-kept").from_sandbox("paused-keeper").full().create().await?;
    ensure!(original.status().await? == SandboxStatus::Paused);
    let restored = Sandbox::builder("unpaused").from_snapshot("paused-kept").create().await?;
    ensure!(restored.status().await? == SandboxStatus::Running);
    goes_on(&restored, &before).await?;
    original.resume().await?;
    goes_on(&original, &before).await?;
    put_away(&restored).await?;
    put_away(&original).await?;
    let stopped = Snapshot::builder("never").from_sandbox("unpaused").full().create().await;
    ensure!(stopped.is_err());
    Ok(Snapshot::remove("paused-kept").await?)
}

async fn forked() -> Result<()> {
    let parent = keeper("parent").await?;
    let before = told(&parent).await?;
    let children = parent.fork(["child-1", "child-2"]).await?;
    for sandbox in children.iter().chain([&parent]) {
        goes_on(sandbox, &before).await?;
        sandbox.shell(format!("echo {} > /root/own", sandbox.name())).await?;
    }
    all_differ(&[&parent, &children[0], &children[1]]).await?;
    nothing_is_left("parent")?;
    for sandbox in children.iter().chain([&parent]) {
        let own = sandbox.shell("cat /root/own").await?.stdout()?;
        ensure!(own.trim() == sandbox.name(), "{own}");
    }
    let again = &children[0];
    again.stop().await?;
    let again = Sandbox::start(again.name()).await?;
    ensure!(again.shell("cat /root/own").await?.stdout()? == "child-1\n", "it boots as any");
    for sandbox in [&again, &children[1], &parent] {
        put_away(sandbox).await?;
    }
    Ok(())
}

async fn all_or_none() -> Result<()> {
    let parent = keeper("lone").await?;
    let before = told(&parent).await?;
    let refused = parent.fork(["lone-child", "lone"]).await;
    ensure!(matches!(refused, Err(MicrosandboxError::SandboxAlreadyExists(_))), "{refused:?}");
    let child = Sandbox::get("lone-child").await;
    ensure!(matches!(child, Err(MicrosandboxError::SandboxNotFound(_))), "{child:?}");
    goes_on(&parent, &before).await?;
    nothing_is_left("lone")?;
    put_away(&parent).await
}

type Harm = fn(&Path) -> Result<()>;

/// Changes one byte near the begin of a file, where it is no hole; a second time changes it back.
fn flip(path: &Path) -> Result<()> {
    const AT: u64 = 1080;
    let file = File::options().read(true).write(true).open(path)?;
    let at = AT.min(file.metadata()?.len() / 2);
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    Ok(())
}

/// By a line break and what is before it.
fn cut(path: &Path) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    Ok(file.set_len(file.metadata()?.len() - 2)?)
}

async fn damaged() -> Result<()> {
    let original = keeper("mender").await?;
    let before = told(&original).await?;
    let taken = Snapshot::builder("mangled").from_sandbox("mender").full().create().await?;
    let harms: [(&str, Harm); 2] = [("flipped", flip), ("cut", cut)];
    for part in ["upper.ext4", "memory", "devices", "checkpoint.json"] {
        for (what, harm) in harms {
            refused_when(&taken, part, harm).await.with_context(|| format!("{part} {what}"))?;
        }
    }
    // It says what the others must be; that it is another one only its id tells.
    refused_when(&taken, "snapshot.json", cut).await?;
    let restored = Sandbox::builder("mended").from_snapshot("mangled").create().await?;
    for sandbox in [&restored, &original] {
        goes_on(sandbox, &before).await?;
        put_away(sandbox).await?;
    }
    Snapshot::remove("mangled").await?;
    ensure!(!snapshots_left().contains(&"mangled".to_owned()));
    Ok(())
}

/// Nobody restores or believes a snapshot with that harm done to a part, which is undone again.
async fn refused_when(taken: &Snapshot, part: &str, harm: Harm) -> Result<()> {
    let parts = [taken.path().join(part), taken.path().join("checkpoint").join(part)];
    let path = parts.into_iter().find(|path| path.exists()).context("the part is there")?;
    let aside = taken.path().join("aside");
    copy(&path, &aside)?;
    harm(&path)?;
    let verified = match Snapshot::get("mangled") {
        Ok(opened) => opened.verify().await,
        Err(error) => Err(error),
    };
    let restored = Sandbox::builder("mended").from_snapshot("mangled").create().await.map(drop);
    for attempt in [verified, restored] {
        let Err(MicrosandboxError::SnapshotIntegrity(message)) = attempt else {
            anyhow::bail!("{attempt:?}");
        };
        ensure!(message.contains(part), "{message}");
    }
    ensure!(!directory("mended").exists());
    Ok(fs::rename(&aside, &path)?)
}

/// With its holes.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status()?;
    ensure!(copied.success(), "copy {}", from.display());
    Ok(())
}

async fn ended_at_once() -> Result<()> {
    let original = keeper("brief-keeper").await?;
    Snapshot::builder("brief-kept").from_sandbox("brief-keeper").full().create().await?;
    original.stop().await?;
    Sandbox::get("brief-keeper").await?.snapshot("brief-disk").await?;
    for snapshot in ["brief-kept", "brief-disk"] {
        end_at_once(snapshot, async |name| {
            let restored = Sandbox::builder(name).from_snapshot(snapshot).memory(192);
            Ok(restored.create().await?)
        })
        .await?;
        Snapshot::remove(snapshot).await?;
    }
    Ok(Sandbox::remove("brief-keeper").await?)
}

/// As [`KEEPER`], in Python, which has all of it in memory.
const PYTHON_KEEPER: &str = r#"
import os, time, uuid
secret, count = uuid.uuid4().hex, 0
while True:
    count += 1
    with open("/root/told.new", "w") as file:
        file.write(f"{secret} {count}\n")
    os.rename("/root/told.new", "/root/told")
    time.sleep(0.01)
"#;

async fn python() -> Result<()> {
    let layout = env::read(MSB_TEST_IMAGES).context("`prepare` has found the images")?;
    let layout = PathBuf::from(layout).join("debian-py");
    Image::load(&layout, Some("debian-py"), Arc::new(|_: PullProgress| {})).await?;
    let original = Sandbox::builder("py").image("debian-py").memory(256).create().await?;
    // The image has the name of the machine that it was made on.
    ensure!(original.shell("cat /etc/hostname").await?.stdout()? == "py\n");
    original.exec_detached("python3", ["-c", PYTHON_KEEPER]).await?;
    eventually("the keeper", async || Ok(told(&original).await.is_ok())).await?;
    let before = told(&original).await?;
    Snapshot::builder("py").from_sandbox("py").full().create().await?;
    let restored = ["py-restored-1", "py-restored-2"];
    let mut all = original.fork(["py-forked-1", "py-forked-2"]).await?;
    for name in restored {
        all.push(Sandbox::builder(name).from_snapshot("py").create().await?);
    }
    all.push(original);
    for sandbox in &all {
        goes_on(sandbox, &before).await.with_context(|| sandbox.name().to_owned())?;
    }
    all_differ(&all.iter().collect::<Vec<_>>()).await?;
    for sandbox in &all {
        put_away(sandbox).await?;
    }
    Ok(Snapshot::remove("py").await?)
}
