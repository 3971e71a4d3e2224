//! Where things are: the checkout, its build folder, the user's cache and the product's home.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::{env, process::Tool};

/// Features that only tests and fuzzing enable: all of them wherever the whole workspace is built for
/// either, else cargo builds whatever depends on them once more.
pub(crate) const TEST_FEATURES: &str = "microsandbox/stop-at-step,microsandbox-agent/fuzz,\
    microsandbox-image/fuzz,microsandbox-runtime/fuzz";

/// Root of this checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace root")
}

/// Cargo's build folder, which the user may have moved.
pub(crate) fn target() -> Result<PathBuf> {
    let metadata = metadata()?;
    let path = metadata["target_directory"].as_str().context("cargo metadata names no target")?;
    Ok(PathBuf::from(path))
}

/// What `cargo metadata` says about the workspace's own packages.
pub(crate) fn metadata() -> Result<serde_json::Value> {
    let text = Tool::cargo()
        .args(["metadata", "--no-deps", "--format-version=1"])
        .in_dir(root())
        .output()?;
    serde_json::from_str(&text).context("read the output of cargo metadata")
}

/// `${XDG_CACHE_HOME:-~/.cache}/microsandbox`: what is costly to make, shared by all checkouts.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = match env::xdg_cache_home() {
        Some(folder) => folder,
        None => user_home()?.join(".cache"),
    };
    Ok(base.join("microsandbox"))
}

/// `${MSB_HOME:-~/.microsandbox}`: where the product is installed.
pub(crate) fn msb_home() -> Result<PathBuf> {
    match env::msb_home() {
        Some(folder) => Ok(folder),
        None => Ok(user_home()?.join(".microsandbox")),
    }
}

fn user_home() -> Result<PathBuf> {
    env::home().context("HOME is not set: set it, or MSB_HOME and XDG_CACHE_HOME")
}
