//! Handles: what they tell, and that they do nothing to a sandbox they are not for.

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox::{
    BootErrorStage, EndReason, MicrosandboxError, Sandbox, SandboxConfig, SandboxStatus,
};

use crate::{
    directory,
    lifecycle::{pid_in_record, signal},
    sandbox, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("handles::a_defined_sandbox_waits_to_be_started", defined),
        trial("handles::the_last_error_is_that_of_an_end_nobody_wanted", last_error),
        trial("handles::a_handle_does_nothing_to_the_next_sandbox_of_its_name", stale),
        trial("handles::a_sandbox_without_its_disk_says_so", without_disk),
        trial("handles::a_boot_that_fails_says_at_which_stage_and_why", failed_boot),
        trial("handles::a_definition_that_cannot_be_touches_nothing", refused),
        trial("handles::the_longest_name_has_a_host_name_that_fits", longest_name),
    ]
}

async fn defined() -> Result<()> {
    let handle = sandbox("waits").label("suite", "handles").define().await?;
    ensure!(handle.status() == SandboxStatus::Created && handle.last_run()?.is_none());
    ensure!(handle.created_at().is_some() && handle.updated_at().is_some());
    ensure!(handle.config()?.labels["suite"] == "handles");
    let again = sandbox("waits").define().await;
    ensure!(matches!(again, Err(MicrosandboxError::SandboxAlreadyExists(_))), "{again:?}");
    let result = handle.wait_until_stopped().await?;
    ensure!(result.status == SandboxStatus::Created && result.reason.is_none(), "{result:?}");
    let ephemeral = sandbox("waits-not").ephemeral(true).define().await;
    ensure!(matches!(ephemeral, Err(MicrosandboxError::InvalidConfig(_))), "{ephemeral:?}");

    let running = handle.start().await?;
    ensure!(running.status().await? == SandboxStatus::Running && running.owns_lifecycle());
    ensure!(running.stop_and_wait().await?.success());
    handle.remove().await?;
    ensure!(!directory("waits").exists());
    Ok(())
}

async fn last_error() -> Result<()> {
    let sandbox = sandbox("errs").create().await?;
    ensure!(sandbox.last_error().await?.is_none(), "an error of a sandbox that runs");
    signal("SEGV", pid_in_record("errs", "vmm_pid")?.parse()?)?;
    let result = sandbox.wait_until_stopped().await?;
    ensure!(result.reason == Some(EndReason::VmmCrashed { signal: 11 }), "{result:?}");
    let told = sandbox.last_error().await?;
    ensure!(told.as_deref() == Some("the VMM was killed by signal 11"), "{told:?}");
    let hint = result.reason.and_then(|reason| reason.hint());
    ensure!(hint.is_some_and(|hint| hint.contains("msb doctor")));

    let again = Sandbox::start("errs").await?;
    ensure!(again.status().await? == SandboxStatus::Running);
    let running = again.remove_persisted().await;
    ensure!(matches!(running, Err(MicrosandboxError::SandboxStillRunning(_))), "{running:?}");
    again.stop().await?;
    ensure!(again.last_error().await?.is_none(), "an error of an end that was wanted");
    again.remove_persisted().await?;
    ensure!(!directory("errs").exists());
    Ok(())
}

async fn stale() -> Result<()> {
    let first = sandbox("heir").define().await?;
    first.remove().await?;
    let second = sandbox("heir").define().await?;
    let disk = directory("heir").join("upper.ext4");
    for done in [first.remove().await.err(), first.start().await.err()] {
        ensure!(matches!(done, Some(MicrosandboxError::SandboxNotFound(_))), "{done:?}");
        ensure!(disk.exists(), "the disk of another sandbox is gone");
    }
    second.remove().await?;
    ensure!(matches!(second.remove().await, Err(MicrosandboxError::SandboxNotFound(_))));
    ensure!(!directory("heir").exists(), "looking for a removed sandbox made its directory");
    Ok(())
}

async fn without_disk() -> Result<()> {
    let handle = sandbox("diskless").define().await?;
    std::fs::remove_file(directory("diskless").join("upper.ext4"))?;
    match handle.start().await {
        Err(error @ MicrosandboxError::SandboxStateMissing { .. }) => {
            ensure!(error.to_string().contains("sandbox state missing"), "{error}");
            ensure!(error.hint().as_deref() == Some("msb rm diskless"));
        }
        other => bail!("{other:?}"),
    }
    handle.remove().await?;
    Ok(())
}

async fn failed_boot() -> Result<()> {
    let handle = sandbox("unbootable").define().await?;
    std::fs::write(directory("unbootable").join("upper.ext4"), vec![0; 1 << 20])?;
    let err = match handle.start().await {
        Err(MicrosandboxError::BootStart { err, .. }) => err,
        other => bail!("{other:?}"),
    };
    // EINVAL: there is no ext4 on that disk.
    ensure!(err.stage == BootErrorStage::Mount && err.errno == Some(22), "{err:?}");
    ensure!(err.message.contains("/dev/vdb") && err.console_tail.contains("EXT4-fs"), "{err:?}");
    ensure!(Sandbox::get("unbootable").await?.status() == SandboxStatus::Crashed);
    handle.remove().await?;
    let end = Sandbox::history("unbootable").await?.remove(0);
    ensure!(end.reason.kind() == "boot_failed" && !end.console_tail.is_empty(), "{end:?}");
    Ok(())
}

async fn refused() -> Result<()> {
    for (config, message) in [
        (with(|it| it.hostname = Some("y".repeat(65))), "hostname is too long: 65 bytes (max 64)"),
        (with(|it| it.hostname = Some(String::new())), "hostname must not be empty"),
        (with(|it| it.name = "n".repeat(129)), "sandbox name is too long: 129 bytes (max 128)"),
        (
            with(|it| drop(it.labels.insert("service.x".into(), String::new()))),
            "label key 'service.x' uses reserved prefix 'service.'",
        ),
        (
            with(|it| it.env.push(("MSB_X".into(), String::new()))),
            "environment variable \"MSB_X\" uses the reserved MSB_ prefix",
        ),
    ] {
        let name = config.name.clone();
        match Sandbox::create(config).await {
            Err(error) => ensure!(error.to_string() == format!("invalid config: {message}")),
            Ok(_) => bail!("{message}: it was created"),
        }
        ensure!(name.len() > 128 || !directory(&name).exists(), "{message}: a directory is left");
    }
    Ok(())
}

/// A definition of an image that does not exist, with one thing wrong that is found before.
fn with(change: impl FnOnce(&mut SandboxConfig)) -> SandboxConfig {
    let mut config = Sandbox::builder("refused-one").image("no/such:image").build();
    if let Ok(config) = &mut config {
        change(config);
    }
    config.unwrap_or_default()
}

async fn longest_name() -> Result<()> {
    let name = "n".repeat(microsandbox::MAX_SANDBOX_NAME_BYTES);
    let sandbox = sandbox(&name).create().await?;
    let none: [&str; 0] = [];
    let hostname = sandbox.exec("hostname", none).await?.stdout()?;
    ensure!(hostname.trim().len() == microsandbox::MAX_HOSTNAME_BYTES, "{hostname:?}");
    sandbox.stop().await?;
    sandbox.remove_persisted().await?;
    Ok(())
}
