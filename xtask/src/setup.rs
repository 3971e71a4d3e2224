//! `cargo xtask setup`: msb and its guest, installed into `$MSB_HOME`.
//!
//! Safe to run again at any time: each step is skipped when what it would make is there.

use std::{
    fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    cli::SetupOptions,
    debian::{self, Package},
    digest,
    guest::{self, Guest},
    kernel,
    process::Tool,
    terminal, workspace,
};

/// What running a sandbox takes besides our own files.
const PACKAGES: &[Package] = &[Package { name: "qemu-system-x86", provides: "qemu-system-x86_64" }];

/// What was installed.
#[derive(Debug)]
pub(crate) struct Installation {
    /// `$MSB_HOME`.
    pub(crate) home: PathBuf,
    /// The `msb` program.
    pub(crate) msb: PathBuf,
    /// Folder of the current guest.
    pub(crate) guest: PathBuf,
}

/// Installs and says how to go on.
pub(crate) fn run(options: &SetupOptions) -> Result<()> {
    let installed = install(options, &workspace::msb_home()?)?;
    terminal::step("Ready");
    terminal::note(format_args!("guest: {}", installed.guest.display()));
    terminal::note(format_args!("msb:   {}", installed.msb.display()));
    terminal::note(format_args!("try:   {} doctor", installed.msb.display()));
    Ok(())
}

/// Installs into `home` what is missing or out of date there.
pub(crate) fn install(options: &SetupOptions, home: &Path) -> Result<Installation> {
    let packages = [kernel::PACKAGES, PACKAGES].concat();
    debian::ensure("microsandbox", &packages)?;
    let guest = Guest::build(&options.kernel)?;
    let msb = build_msb()?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(home)
        .with_context(|| format!("create {}", home.display()))?;
    let guest = guest.install(home)?;
    let msb = install_program(&msb, &home.join("bin"))?;
    Ok(Installation { home: home.to_owned(), msb, guest })
}

fn build_msb() -> Result<PathBuf> {
    terminal::step("Building msb");
    Tool::cargo()
        .args(["build", "--release", "--package", "microsandbox-cli", "--bin", "msb"])
        .in_dir(workspace::root())
        .run()?;
    Ok(workspace::target()?.join("release/msb"))
}

/// Replaces by rename: a program that runs keeps its old file.
fn install_program(program: &Path, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let name = program.file_name().context("a program has a name")?;
    let installed = folder.join(name);
    if installed.exists() && digest::of_file(&installed)? == digest::of_file(program)? {
        return Ok(installed);
    }
    terminal::step(format_args!("Installing {}", installed.display()));
    let work = tempfile::Builder::new().prefix(".new-").tempdir_in(folder)?;
    let fresh = work.path().join(name);
    guest::copy(program, &fresh)?;
    fs::rename(&fresh, &installed).with_context(|| format!("replace {}", installed.display()))?;
    Ok(installed)
}
