//! A sandbox under load: what `bench exec` and `soak exec` share.
//!
//! `crates/microsandbox/examples/load.rs` does the work over one connection; here it is built and
//! told what to do, and what guest and host hold is counted.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cli::SetupOptions,
    fixtures, oci,
    proc::{member, to_float},
    process::Tool,
    setup::{self, Installation},
    terminal, workspace,
};

const IMAGE: &str = "load:latest";

/// A sandbox that runs, and the programs that use it. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) installed: Installation,
    load: PathBuf,
    name: &'static str,
}

impl Loaded {
    /// Builds what is needed and starts a sandbox of that name.
    pub(crate) fn start(name: &'static str) -> Result<Self> {
        let home = workspace::target()?.join("load-home");
        let installed = setup::install(&SetupOptions::default(), &home)?;
        terminal::step("Building the example `load`");
        Tool::cargo()
            .args(["build", "--quiet", "--release", "-p", "microsandbox", "--example", "load"])
            .in_dir(workspace::root())
            .run()?;
        let load = workspace::target()?.join("release/examples/load");
        let loaded = Self { installed, load, name };
        let work = tempfile::tempdir().context("create a temporary folder")?;
        let archive = work.path().join("image.tar");
        oci::write_archive(&fixtures::busybox()?.join("busybox"), &archive)?;
        loaded.msb().args(["load", "-q", "-t", IMAGE, "-i"]).arg(&archive).output()?;
        // What a run that was cut off left behind.
        loaded.msb().args(["rm", "-f", name]).succeeds()?;
        loaded.msb().args(["create", "-q", "--name", name, IMAGE]).output()?;
        Ok(loaded)
    }

    /// `msb` in the home of the sandbox.
    pub(crate) fn msb(&self) -> Tool {
        Tool::new(&self.installed.msb).env(crate::env::MSB_HOME, &self.installed.home)
    }

    /// The program of the image.
    pub(crate) fn busybox(&self) -> Result<Vec<u8>> {
        let cat = Command::new(&self.installed.msb)
            .args(["image", "cat", IMAGE, "/bin/busybox"])
            .env(crate::env::MSB_HOME, &self.installed.home)
            .output()
            .context("start msb")?;
        ensure!(cat.status.success(), "{}", String::from_utf8_lossy(&cat.stderr));
        Ok(cat.stdout)
    }

    /// Has the example do something and gives what it printed: numbers.
    pub(crate) fn load(&self, words: &[&str]) -> Result<Vec<f64>> {
        let tool = Tool::new(&self.load).env(crate::env::MSB_HOME, &self.installed.home);
        let printed = tool.arg(self.name).args(words).output()?;
        let value: serde_json::Value =
            serde_json::from_str(&printed).with_context(|| format!("read {printed:?}"))?;
        match value {
            serde_json::Value::Array(values) => {
                Ok(values.iter().filter_map(|it| it.as_f64()).collect())
            }
            value => Ok(value.as_f64().into_iter().collect()),
        }
    }

    /// Runs a script in the guest and gives its output.
    pub(crate) fn shell(&self, script: &str) -> Result<String> {
        self.msb().args(["exec", self.name, "--", "sh", "-c", script]).output()
    }

    /// Process id of the supervisor.
    pub(crate) fn supervisor(&self) -> Result<u64> {
        let path = self.installed.home.join("sandboxes").join(self.name).join("run.json");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let record: serde_json::Value = serde_json::from_slice(&text).context("read run.json")?;
        record["pid"].as_u64().context("run.json names the supervisor")
    }

    /// Memory of the supervisor and of the agent, MiB.
    pub(crate) fn memory(&self) -> Result<[f64; 2]> {
        let path = format!("/proc/{}/status", self.supervisor()?);
        let host = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok([resident_mib(&host), resident_mib(&self.shell("cat /proc/1/status")?)])
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // The next run removes what is left.
        self.msb().args(["rm", "-f", self.name]).succeeds().ok();
    }
}

/// `VmRSS` of a `/proc/PID/status`.
fn resident_mib(status: &str) -> f64 {
    to_float(member(status, "VmRSS:")) / 1024.0
}
