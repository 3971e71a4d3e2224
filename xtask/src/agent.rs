//! `cargo xtask agent`: the guest agent as one static program, packed into an initramfs.
//!
//! The target is musl. Where the musl target can neither be found nor installed, the program is
//! built for glibc with its C runtime linked in: larger (1.4 MB instead of 0.6) but as static.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{cli::AgentOptions, elf, initramfs, process::Tool, terminal, workspace};

/// Cargo profile of the workspace that builds the agent for size.
const PROFILE: &str = "agent";
const PACKAGE: &str = "microsandbox-agent";
const PROGRAM: &str = "agentd";

/// Builds the agent and prints where program and initramfs are.
pub(crate) fn run(options: &AgentOptions) -> Result<()> {
    let agent = ensure(options)?;
    terminal::result(agent.program.display());
    terminal::result(agent.initramfs.display());
    Ok(())
}

/// A built agent.
#[derive(Debug)]
pub(crate) struct Agent {
    /// The static program.
    pub(crate) program: PathBuf,
    /// The initramfs that starts it as PID 1.
    pub(crate) initramfs: PathBuf,
}

/// Builds the agent; cargo knows what is up to date.
pub(crate) fn ensure(options: &AgentOptions) -> Result<Agent> {
    let arch = std::env::consts::ARCH;
    let target = match &options.target {
        Some(target) => {
            if !is_installed(target)? {
                bail!("the target {target} is missing; install it: rustup target add {target}");
            }
            target.clone()
        }
        None => {
            let musl = format!("{arch}-unknown-linux-musl");
            if is_installed(&musl)? {
                musl
            } else {
                let glibc = format!("{arch}-unknown-linux-gnu");
                terminal::note(format_args!("{musl} cannot be installed; building for {glibc}"));
                glibc
            }
        }
    };
    build(&target)
}

fn build(target: &str) -> Result<Agent> {
    terminal::step(format_args!("Building the agent for {target}"));
    let mut cargo = Tool::cargo()
        .args(["build", "--profile", PROFILE, "--package", PACKAGE, "--bin", PROGRAM])
        .args(["--target", target])
        .in_dir(workspace::root());
    if target.ends_with("-gnu") {
        cargo = cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    }
    cargo.run()?;
    let folder = workspace::target()?.join(target).join(PROFILE);
    let program = folder.join(PROGRAM);
    elf::require_static(&program)?;
    let initramfs = folder.join("initramfs.cpio");
    pack(&program, &initramfs)?;
    Ok(Agent { program, initramfs })
}

fn pack(program: &Path, initramfs: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("read {}", program.display()))?;
    fs::write(initramfs, initramfs::pack(&bytes)?)
        .with_context(|| format!("write {}", initramfs.display()))
}

/// Whether the standard library for `target` is there, after an attempt to install it.
fn is_installed(target: &str) -> Result<bool> {
    if has_library(target)? {
        return Ok(true);
    }
    terminal::step(format_args!("Installing the Rust target {target}"));
    // Without rustup, or without a network, the question below is still the one that counts.
    let added = Tool::new("rustup").args(["target", "add", target]).in_dir(workspace::root()).run();
    if let Err(error) = added {
        terminal::note(error);
    }
    has_library(target)
}

fn has_library(target: &str) -> Result<bool> {
    let folder = Tool::new("rustc")
        .args(["--print", "target-libdir", "--target", target])
        .in_dir(workspace::root())
        .output()
        .with_context(|| format!("ask rustc about {target}"))?;
    Ok(Path::new(&folder).is_dir())
}
