//! Copies of a sandbox: what is each one's own, the hook that sees to the rest, and what a disk takes.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{MicrosandboxError, Sandbox, Snapshot};

use crate::{directory, lifecycle::eventually, sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("clones::every_copy_has_an_identity_and_runs_the_hook_once", copies),
        trial("clones::a_hook_that_fails_is_told_and_leaves_nothing", failing_hook),
        trial("clones::what_a_guest_deletes_is_given_back", given_back),
    ]
}

async fn set_hook(sandbox: &Sandbox, command: &str) -> Result<()> {
    let script = format!("#!/bin/sh\n{command}\n");
    let fs = sandbox.fs();
    fs.mkdir("/etc/microsandbox").await?;
    fs.write("/etc/microsandbox/on-clone", script.as_bytes()).await?;
    let made = sandbox.shell("chmod 755 /etc/microsandbox/on-clone").await?;
    ensure!(made.status().success, "{made:?}");
    Ok(())
}

async fn machine_id(sandbox: &Sandbox) -> Result<String> {
    Ok(sandbox.shell("cat /etc/machine-id").await?.stdout()?)
}

/// Checks that the hook has run here, and what names the machine.
async fn is_its_own(sandbox: &Sandbox) -> Result<()> {
    let name = sandbox.name();
    let told = sandbox.shell("cat /root/hooked /etc/hostname; tail -n 1 /etc/hosts").await?;
    ensure!(told.stdout()? == format!("{name}\n{name}\n127.0.1.1\t{name}\n"), "{told:?}");
    Ok(())
}

async fn copies() -> Result<()> {
    let first = sandbox("copied").create_detached().await?;
    set_hook(&first, "hostname >> /root/hooked").await?;
    let id = machine_id(&first).await?;
    first.stop().await?;
    // What the agent wrote is known as such in a later run, too.
    let original = Sandbox::start("copied").await?;
    ensure!(machine_id(&original).await? == id, "it is the same machine");
    let mut copies = original.fork(["copied-fork"]).await?;
    Snapshot::builder("copied-running").from_sandbox("copied").full().create().await?;
    copies.push(Sandbox::builder("copied-machine").from_snapshot("copied-running").create().await?);
    let hooked = original.shell("test -e /root/hooked").await?;
    ensure!(!hooked.status().success, "the original is no copy");
    original.stop().await?;
    Sandbox::get("copied").await?.snapshot("copied-disk").await?;
    let disk = Sandbox::builder("copied-later").from_snapshot("copied-disk").create().await?;
    let mut ids = BTreeSet::from([id]);
    for copy in copies.iter().chain([&disk]) {
        is_its_own(copy).await?;
        ensure!(ids.insert(machine_id(copy).await?), "{}: {ids:?}", copy.name());
    }
    disk.stop().await?;
    let again = Sandbox::start("copied-later").await?;
    is_its_own(&again).await?;
    ensure!(ids.contains(&machine_id(&again).await?), "a restart makes no other machine");
    Ok(())
}

async fn failing_hook() -> Result<()> {
    let parent = sandbox("hooked").create().await?;
    set_hook(&parent, "echo no keys >&2; exit 3").await?;
    let failed = parent.fork(["hooked-child"]).await.err().context("the hook fails")?;
    let told = failed.to_string();
    for part in ["hooked-child", "/etc/microsandbox/on-clone", "Code(3)", "no keys"] {
        ensure!(told.contains(part), "{part} in {told}");
    }
    let child = Sandbox::get("hooked-child").await;
    ensure!(matches!(child, Err(MicrosandboxError::SandboxNotFound(_))), "{child:?}");
    ensure!(parent.shell("echo alive").await?.stdout()? == "alive\n");
    // One that was defined stays, and its hook is not got round by starting it again.
    parent.stop().await?;
    Sandbox::get("hooked").await?.snapshot("hooked-disk").await?;
    Sandbox::builder("hooked-later").from_snapshot("hooked-disk").define().await?;
    for _ in 0..3 {
        let failed = Sandbox::start("hooked-later").await.err().context("the hook fails")?;
        ensure!(failed.to_string().contains("no keys"), "{failed}");
    }
    Ok(())
}

async fn given_back() -> Result<()> {
    let sandbox = sandbox("deletes").create().await?;
    let taken = || {
        Ok::<_, std::io::Error>(
            fs::metadata(directory("deletes").join("upper.ext4"))?.blocks() * 512,
        )
    };
    let before = taken()?;
    let written = sandbox.shell("dd if=/dev/urandom of=/root/big bs=1M count=32 && sync").await?;
    ensure!(written.status().success, "{written:?}");
    ensure!(taken()? > before + (30 << 20), "{} after {before}", taken()?);
    ensure!(sandbox.shell("rm /root/big && sync").await?.status().success);
    // With the next commit of the guest's journal, five seconds apart.
    eventually("the room is free again", async || Ok(taken()? < before + (8 << 20))).await
}
