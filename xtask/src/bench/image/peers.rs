//! The programs that are measured, and the registry they pull from.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};

use super::text;
use crate::{cache, digest, process::Tool, terminal, test, workspace};

/// Release of upstream's package on PyPI, which carries its program.
pub(super) const UPSTREAM_VERSION: &str = "0.7.11";

/// Our program, built as it is released.
pub(super) fn ours() -> Result<String> {
    let build = ["build", "--release", "-p", "microsandbox-cli"];
    Tool::cargo().args(build).in_dir(workspace::root()).run()?;
    text(&workspace::target()?.join("release/msb"))
}

/// Upstream's program, fetched into the cache; `None` where it cannot be had.
pub(in crate::bench) fn upstream() -> Option<String> {
    let package = format!("microsandbox=={UPSTREAM_VERSION}");
    let fetch = |entry: &Path| {
        terminal::step(format_args!("Fetching {package} from PyPI"));
        let pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--target"];
        Tool::new("python3").args(pip).arg(entry).arg(&package).run()
    };
    let fetched = cache::get_or_make("tools", &digest::key(&[&package]), fetch).and_then(|entry| {
        let program = entry.join("microsandbox/_bundled/bin/msb");
        ensure!(program.is_file(), "{package} has no {}", program.display());
        text(&program)
    });
    match fetched {
        Ok(program) => Some(program),
        Err(error) => {
            terminal::failure(&error);
            None
        }
    }
}

/// A `docker-registry` on a loopback port; ends when dropped.
#[derive(Debug)]
pub(super) struct Registry {
    child: Child,
    /// `host:port`.
    pub(super) address: String,
}

impl Registry {
    /// Serves the files in `storage`; `work` is a folder for its configuration.
    pub(super) fn start(storage: &Path, work: &Path) -> Result<Self> {
        // Taken and given back: the registry takes no open socket.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = port.context("find a free port")?.to_string();
        let config = work.join("registry.yml");
        let settings = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{address}'}}\n",
            storage.display()
        );
        fs::write(&config, settings).with_context(|| format!("write {}", config.display()))?;
        let mut command = Command::new(test::registry_program()?);
        command.arg("serve").arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut registry = Self { child: command.spawn().context("start the registry")?, address };
        let log = registry.child.stderr.take().context("take the registry's log")?;
        let mut lines = BufReader::new(log).lines();
        let listens =
            lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        ensure!(listens, "the registry ended before it listened");
        // Read on, or the registry stops when its log is full.
        thread::spawn(move || lines.for_each(drop));
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
