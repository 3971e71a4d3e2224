//! Scenario `boot`: cold boot to ready, beside the raw floor of the same kernel and initramfs.

use std::{path::PathBuf, time::Instant};

use anyhow::Result;

use super::{
    home::{BenchHome, IMAGE},
    qemu,
    report::Report,
};
use crate::{agent, cli::AgentOptions, guest, terminal};

const SANDBOX: &str = "bench-boot";

/// `msb create`, which returns at ready, and raw QEMU, in turn.
pub(super) fn run(runs: usize) -> Result<Report> {
    let home = BenchHome::prepare()?;
    let kernel = home.installed.guest.join(guest::KERNEL);
    let initramfs = home.installed.guest.join(guest::INITRAMFS);
    // What a run that was cut off left behind.
    home.msb().args(["rm", "-f", SANDBOX]).succeeds()?;

    terminal::step(format_args!("Booting {runs} times each: raw QEMU, msb"));
    let mut report = Report::new("boot", "s", home.kernel.clone());
    for _ in 0..runs {
        let raw = qemu::boot(&kernel, &initramfs)?;
        report.add("raw QEMU to the agent's hello", raw.as_secs_f64());
        let started = Instant::now();
        home.msb().args(["create", "--cold", "--name", SANDBOX, IMAGE]).output()?;
        report.add("msb create to ready", started.elapsed().as_secs_f64());
        home.msb().args(["rm", "-f", SANDBOX]).output()?;
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
