//! gVisor, Debian's package, on the same root file system as the sandboxes have.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    bench::timed::Timed,
    cache,
    debian::{self, Package},
    digest, fixtures,
    process::Tool,
    terminal, workspace,
};

const PACKAGES: &[Package] =
    &[Package { name: "runsc", provides: "runsc" }, Package { name: "umoci", provides: "umoci" }];

/// A root file system, and a folder for what runsc keeps.
#[derive(Debug)]
pub(super) struct Gvisor {
    root: PathBuf,
    work: TempDir,
}

impl Gvisor {
    /// `None` where it cannot be had or runs nothing, which is said.
    pub(super) fn find() -> Result<Option<Self>> {
        if let Err(error) = debian::ensure("the comparison with gVisor", PACKAGES) {
            terminal::note(format_args!("absent: gVisor: {error:#}"));
            return Ok(None);
        }
        let root = unpacked()?;
        let work = tempfile::tempdir_in(workspace::target()?).context("create a folder")?;
        let gvisor = Self { root, work };
        match Timed::of(&mut gvisor.command(&["/bin/true"])?) {
            Ok(_) => Ok(Some(gvisor)),
            Err(error) => {
                terminal::note(format_args!("absent: gVisor, which does not run here: {error:#}"));
                Ok(None)
            }
        }
    }

    /// A command that runs in a new sandbox, without a network, as `msb run` has it.
    pub(super) fn command(&self, words: &[&str]) -> Result<Command> {
        let bundle = self.work.path().join("bundle");
        fs::create_dir_all(&bundle).context("make a bundle")?;
        let config = serde_json::to_vec(&self.config(words)).context("write a bundle")?;
        fs::write(bundle.join("config.json"), config).context("write a bundle")?;
        let mut command = Command::new("runsc");
        command.arg("--root").arg(self.work.path().join("state"));
        command.args(["--rootless", "--network=none", "run", "--bundle"]).arg(bundle);
        command.arg("bench");
        Ok(command)
    }

    /// The bundle's configuration (OCI runtime specification 1.0, `config.md`).
    fn config(&self, words: &[&str]) -> Value {
        json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": { "uid": 0, "gid": 0 },
                "args": words,
                "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "cwd": "/root",
            },
            "root": { "path": self.root, "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
        })
    }
}

/// The root of the image, unpacked once for all.
fn unpacked() -> Result<PathBuf> {
    let images = fixtures::debian_py()?;
    let entry = images.file_name().context("an entry of the cache has a name")?.to_string_lossy();
    let bundle = cache::get_or_make("bundles", &digest::key(&[&entry]), |folder| {
        terminal::step("Unpacking the Debian image for gVisor (umoci)");
        let image = format!("{}:py", images.join("debian-py").display());
        Tool::new("umoci").args(["unpack", "--image", &image]).arg(folder.join("bundle")).run()
    });
    Ok(bundle?.join("bundle/rootfs"))
}
