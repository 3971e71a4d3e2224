//! The real tools that make and judge images.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// Runs a tool; its output is the answer, failure is an error with what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program} is needed by the tests: run `cargo xtask setup`"))?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{program} {arguments:?}: {text}");
    Ok(text)
}

/// An error with its causes, as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// An OCI layout with one image, tagged `latest`, made by `umoci` from these layers.
pub(crate) fn layout(layers: &[Vec<u8>]) -> Result<TempDir> {
    let directory = TempDir::new()?;
    let layout = directory.path().join("layout");
    let layout = text(&layout)?;
    let image = format!("{layout}:latest");
    run("umoci", &["init", "--layout", layout])?;
    run("umoci", &["new", "--image", &image])?;
    for (index, layer) in layers.iter().enumerate() {
        let tar = directory.path().join(format!("{index}.tar"));
        std::fs::write(&tar, layer)?;
        run("umoci", &["raw", "add-layer", "--image", &image, text(&tar)?])?;
    }
    run("umoci", &["config", "--image", &image, "--config.cmd", "sh", "--config.env", "A=1"])?;
    Ok(directory)
}

/// A `docker-registry` on a loopback port; ends with the value.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
    _storage: TempDir,
    _users: Option<TempDir>,
}

impl Registry {
    pub(crate) fn start() -> Result<Self> {
        Self::start_with("", "")
    }

    /// One that knows `user` with the password `secret` alone.
    pub(crate) fn start_with_password() -> Result<Self> {
        let directory = TempDir::new()?;
        let users = directory.path().join("htpasswd");
        // bcrypt of "secret", cost 4.
        std::fs::write(
            &users,
            "user:$2b$04$z0RSG5Jt/fBjsAgZCGmRo.DF21Hk0g1yKUuMBLIKqssMJ9HNflvB2\n",
        )?;
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", text(&users)?);
        let mut registry = Self::start_with(&auth, "")?;
        registry._users = Some(directory);
        Ok(registry)
    }

    /// One with more settings, and more settings of its server.
    pub(crate) fn start_with(settings: &str, http: &str) -> Result<Self> {
        let storage = TempDir::new()?;
        // Taken and given back: the registry takes no open socket. A clash would fail the test, not pass it.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let config = storage.path().join("config.yml");
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '{address}'{http}}}\n{settings}",
                text(storage.path())?
            ),
        )?;
        let mut child = Command::new("docker-registry")
            .args(["serve", text(&config)?])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("docker-registry is needed by the tests: run `cargo xtask setup`")?;
        let log = BufReader::new(child.stderr.take().context("stderr is piped")?);
        let mut registry = Self { child, address, _storage: storage, _users: None };
        let mut lines = log.lines();
        let listening =
            lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
        if !listening {
            registry.child.wait()?;
            anyhow::bail!("docker-registry ended before it listened");
        }
        // Keep reading, or the registry stops when its log is full.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(registry)
    }

    /// Pushes an image of a layout made by [`layout`]; answers with its name.
    pub(crate) fn push(&self, layout: &Path, name: &str) -> Result<String> {
        self.push_with(layout, name, &[])
    }

    /// As [`Self::push`], with more arguments for `skopeo copy`.
    pub(crate) fn push_with(&self, layout: &Path, name: &str, more: &[&str]) -> Result<String> {
        let reference = format!("{}/{name}", self.address);
        let source = format!("oci:{}:latest", text(layout)?);
        let target = format!("docker://{reference}");
        let arguments = ["copy", "--dest-tls-verify=false", &source, &target];
        run("skopeo", &[&arguments, more].concat())?;
        Ok(reference)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have died by itself; there is nothing more to undo.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A read-only loop mount; ends with the value.
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    _directory: TempDir,
}

impl Mount {
    pub(crate) fn erofs(image: &Path) -> Result<Self> {
        Self::new("erofs", image)
    }

    pub(crate) fn ext4(image: &Path) -> Result<Self> {
        Self::new("ext4", image)
    }

    fn new(file_system: &str, image: &Path) -> Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path().join("mount");
        std::fs::create_dir(&path)?;
        run("mount", &["-t", file_system, "-o", "loop,ro", text(image)?, text(&path)?])?;
        Ok(Self { path, _directory: directory })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a busy mount must not keep the directory from going.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Whether this user may mount and make device nodes; says so where a judge is left out.
pub(crate) fn is_root(test: &str) -> bool {
    let root = std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0);
    if !root {
        report_not_run(test);
    }
    root
}

#[expect(clippy::print_stderr, reason = "a judge that was left out must be visible")]
fn report_not_run(test: &str) {
    eprintln!("not run: {test} needs root");
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("test paths are UTF-8")
}
