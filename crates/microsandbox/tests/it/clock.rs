//! The guest's wall clock.

use std::{
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use microsandbox::Sandbox;

use crate::{
    lifecycle::{eventually, pid_in_record},
    sandbox, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("clock::a_sandbox_that_was_held_still_is_told_the_time", told)]
}

/// Seconds that the guest is ahead of the host.
async fn ahead(sandbox: &Sandbox) -> Result<i64> {
    let guest: i64 = sandbox.exec("date", ["+%s"]).await?.stdout()?.trim().parse()?;
    let host = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    Ok(guest - i64::try_from(host)?)
}

async fn told() -> Result<()> {
    let sandbox = sandbox("clock").create().await?;
    ensure!(ahead(&sandbox).await?.abs() < 5, "wrong from the beginning");
    // What a sleep of the host leaves behind.
    let wrong = sandbox.shell("date -s '2001-02-03 04:05:06'").await?;
    ensure!(wrong.status().success && ahead(&sandbox).await? < -1_000_000, "{wrong:?}");
    let supervisor = pid_in_record("clock", "pid")?;
    ensure!(Command::new("kill").args(["-CONT", &supervisor]).status()?.success());
    eventually("the right time", async || Ok(ahead(&sandbox).await?.abs() < 5)).await?;
    sandbox.kill().await?;
    Ok(())
}
