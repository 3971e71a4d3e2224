//! A home of the benchmarks' own: the product as it is installed, and a small image.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::{
    cli::SetupOptions,
    fixtures, guest, oci,
    process::Tool,
    setup::{self, Installation},
    workspace,
};

/// Name of the small image.
pub(crate) const IMAGE: &str = "bench:latest";

/// Name of Debian with Python.
pub(crate) const DEBIAN: &str = "bench-debian:latest";

/// A home with everything that a start needs.
#[derive(Debug)]
pub(crate) struct BenchHome {
    pub(crate) installed: Installation,
    /// The guest kernel, as it calls itself.
    pub(crate) kernel: String,
}

impl BenchHome {
    /// Installs, and loads the image.
    pub(crate) fn prepare() -> Result<Self> {
        Self::prepare_in("bench-home")
    }

    /// As [`BenchHome::prepare`], in a folder of that name: for what leaves traces in a home.
    pub(crate) fn prepare_in(folder: &str) -> Result<Self> {
        let home = workspace::target()?.join(folder);
        let installed = setup::install(&SetupOptions::default(), &home)?;
        let kernel = kernel_version(&installed.guest.join(guest::KERNEL))?;
        let work = tempfile::tempdir().context("create a temporary folder")?;
        let archive = work.path().join("image.tar");
        oci::write_archive(&fixtures::busybox()?.join("busybox"), &archive)?;
        let prepared = Self { installed, kernel };
        prepared.msb().args(["load", "-q", "-t", IMAGE, "-i"]).arg(&archive).output()?;
        Ok(prepared)
    }

    /// Loads [`DEBIAN`], once.
    pub(crate) fn load_debian(&self) -> Result<()> {
        let layout = fixtures::debian_py()?.join("debian-py");
        if self.msb().args(["image", "inspect", DEBIAN]).succeeds()? {
            return Ok(());
        }
        self.msb().args(["load", "-q", "-t", DEBIAN, "-i"]).arg(&layout).output().map(drop)
    }

    /// The installed program, in this home.
    pub(crate) fn msb(&self) -> Tool {
        Tool::new(&self.installed.msb).env(crate::env::MSB_HOME, &self.installed.home)
    }

    /// As [`BenchHome::msb`], for those who start it in a way of their own.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.installed.msb);
        command.args(words).env(crate::env::MSB_HOME, &self.installed.home);
        command
    }

    /// The record of a sandbox's last run (`docs/formats/records.md`).
    pub(crate) fn record(&self, sandbox: &str) -> Result<Value> {
        let path = self.installed.home.join("sandboxes").join(sandbox).join("run.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }
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
