//! `cargo xtask quickstart`: from a checkout to the output of a command inside a microVM.
//!
//! The image is busybox from Debian's package, so that nothing depends on a container registry.

use anyhow::{Context as _, Result};

use crate::{cli::SetupOptions, fixtures, oci, process::Tool, setup, terminal, workspace};

const IMAGE: &str = "busybox:latest";
const SCRIPT: &str = "echo \"Hello from inside the microVM.\"; uname -a; id; head -1 /proc/meminfo";

/// Sets everything up, runs one command in a sandbox and shows what it said.
pub(crate) fn run() -> Result<()> {
    let installed = setup::install(&SetupOptions::default(), &workspace::msb_home()?)?;
    let work = tempfile::tempdir().context("create a temporary folder")?;
    let archive = work.path().join("busybox.tar");
    oci::write_archive(&fixtures::busybox()?.join("busybox"), &archive)?;

    let msb = || Tool::new(&installed.msb).env(crate::env::MSB_HOME, &installed.home);
    terminal::step(format_args!("msb load -i busybox.tar -t {IMAGE}"));
    msb().args(["load", "-q", "-i"]).arg(&archive).args(["-t", IMAGE]).run()?;
    terminal::step(format_args!("msb run {IMAGE} -- sh -c '...; uname -a; id; ...'"));
    msb().args(["run", IMAGE, "--", "sh", "-c", SCRIPT]).run()?;

    terminal::step("Done. Go on with");
    let msb = installed.msb.display();
    terminal::note(format_args!("{msb} run {IMAGE} -- sh -c 'ls -l /'"));
    terminal::note(format_args!("{msb} doctor"));
    Ok(())
}
