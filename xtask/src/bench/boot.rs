//! Scenario `boot`: cold boot to ready, beside the raw floor of the same kernel and initramfs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use super::{qemu, report::Report};
use crate::{
    agent,
    cli::{AgentOptions, SetupOptions},
    fixtures, guest, oci,
    process::Tool,
    setup, terminal, workspace,
};

const IMAGE: &str = "bench-boot:latest";
const SANDBOX: &str = "bench-boot";

/// `msb create`, which returns at ready, and raw QEMU, in turn.
pub(super) fn run(runs: usize) -> Result<Report> {
    let home = workspace::target()?.join("bench-home");
    let installed = setup::install(&SetupOptions::default(), &home)?;
    let kernel = installed.guest.join(guest::KERNEL);
    let initramfs = installed.guest.join(guest::INITRAMFS);
    let msb = || Tool::new(&installed.msb).env(crate::env::MSB_HOME, &home);

    let work = tempfile::tempdir().context("create a temporary folder")?;
    let archive = work.path().join("image.tar");
    oci::write_archive(&fixtures::busybox()?.join("busybox"), &archive)?;
    msb().args(["load", "-q", "-t", IMAGE, "-i"]).arg(&archive).output()?;
    // What a run that was cut off left behind.
    msb().args(["rm", "-f", SANDBOX]).succeeds()?;

    terminal::step(format_args!("Booting {runs} times each: raw QEMU, msb"));
    let mut report = Report::new("boot", "s", kernel_version(&kernel)?);
    for _ in 0..runs {
        let raw = qemu::boot(&kernel, &initramfs)?;
        report.add("raw QEMU to the agent's hello", raw.as_secs_f64());
        let started = Instant::now();
        msb().args(["create", "--cold", "--name", SANDBOX, IMAGE]).output()?;
        report.add("msb create to ready", started.elapsed().as_secs_f64());
        msb().args(["rm", "-f", SANDBOX]).output()?;
    }
    Ok(report)
}

/// Raw boots of several kernels with our initramfs, in turn.
pub(super) fn compare_kernels(kernels: &[PathBuf], runs: usize) -> Result<Report> {
    let initramfs = agent::ensure(&AgentOptions::default())?.initramfs;
    terminal::step(format_args!("Booting {} kernels {runs} times each", kernels.len()));
    let mut report = Report::new("kernel", "s", "several kernels".to_owned());
    for _ in 0..runs {
        for kernel in kernels {
            let took = qemu::boot(kernel, &initramfs)?;
            report.add(&kernel.display().to_string(), took.as_secs_f64());
        }
    }
    Ok(report)
}

/// What the kernel calls itself: the words after "Linux version" in its banner.
fn kernel_version(kernel: &Path) -> Result<String> {
    const BANNER: &[u8] = b"Linux version ";
    let bytes = fs::read(kernel).with_context(|| format!("read {}", kernel.display()))?;
    let at = bytes.windows(BANNER.len()).position(|window| window == BANNER);
    let rest = at.map(|at| &bytes[at + BANNER.len()..]).unwrap_or_default();
    let name: Vec<u8> =
        rest.iter().copied().take_while(|byte| !byte.is_ascii_whitespace()).collect();
    String::from_utf8(name).with_context(|| format!("{} has no banner", kernel.display()))
}
