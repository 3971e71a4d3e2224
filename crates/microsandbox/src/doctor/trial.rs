//! The trial: a sandbox is made, takes a command, and goes again.
//!
//! Its image is an empty directory: a guest takes commands when its agent has run one of its own, for
//! which nothing of the image is needed. So what is tried is everything but an image.

use std::sync::Arc;

use microsandbox_image::{ImageConfig, Silent};
use microsandbox_runtime::{SandboxDir, explained};

use super::Check;
use crate::{MicrosandboxError, MicrosandboxResult, Sandbox, home::Home, image::Image};

/// Boots a sandbox, takes its word for what it is, and removes it and its image.
///
/// # Errors
/// [`MicrosandboxError::InvalidConfig`] when the settings themselves are wrong. A sandbox that does
/// not start is a finding and no error.
pub async fn try_boot() -> MicrosandboxResult<Check> {
    let home = Home::from_env()?;
    let name = format!("doctor-{}", std::process::id());
    let booted = boot(&home, &name).await;
    // Nothing is left where the boot failed; then there may have been no image either.
    let _no_image = Image::remove(&name).await;
    Ok(match booted {
        Ok(detail) => Check::ok("boot", detail),
        Err(error) => Check::fail("boot", explained(&error), error.hint()),
    })
}

async fn boot(home: &Home, name: &str) -> MicrosandboxResult<String> {
    home.ensure()?;
    let root = home.path().join(format!(".{name}"));
    let made = std::fs::create_dir(&root);
    made.map_err(MicrosandboxError::file("make the directory", &root))?;
    let image = Image::load_directory(&root, name, ImageConfig::default(), Arc::new(Silent)).await;
    let removed = std::fs::remove_dir(&root);
    image?;
    removed.map_err(MicrosandboxError::file("remove the directory", &root))?;

    let sandbox = Sandbox::builder(name).image(name).memory(256).ephemeral(true).create().await?;
    let told = tell(&home.sandbox_dir(name)?);
    sandbox.kill().await?;
    match Sandbox::remove(name).await {
        // An ephemeral one removes itself.
        Ok(()) | Err(MicrosandboxError::SandboxNotFound(_)) => told,
        Err(error) => Err(error),
    }
}

/// What the run says of itself.
fn tell(dir: &SandboxDir) -> MicrosandboxResult<String> {
    let Some(run) = dir.run_record()? else { return Ok("it took a command".into()) };
    let guest = run.guest.map_or_else(String::new, |guest| {
        format!("Linux {}, agent {}", guest.kernel_release, guest.agent_version)
    });
    Ok(format!(
        "{guest}, ready after {} ms, {} with {}",
        run.boot.ready_us / 1000,
        run.vmm,
        run.accel
    ))
}
