//! One file: runs a part of itself in a microVM, on a machine that has nothing but QEMU or KVM.
//!
//! The program carries the guest's kernel and agent (feature `embed-guest`) and makes the image out
//! of itself: its own executable and the libraries that are mapped into it. No image is pulled and
//! nothing is installed.
//!
//! ```text
//! cargo xtask setup
//! cargo build --release -p microsandbox --example embedded --features embed-guest
//! ```

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result};
use microsandbox::{
    PullProgress, Sandbox,
    image::{Image, ImageConfig},
};

const IMAGE: &str = "embedded";
/// Where the program lies in the image, and the libraries beside their loader.
const PROGRAM: &str = "embedded";
const LIBRARIES: &str = "lib64";

#[tokio::main]
async fn main() -> Result<()> {
    // Lets this program run its own sandboxes: nothing else has to be installed for that.
    microsandbox::reexec::init();
    match std::env::args().nth(1).as_deref() {
        None => outside().await,
        Some(_) => inside(),
    }
}

/// On the host.
async fn outside() -> Result<()> {
    let root = tempfile::tempdir()?;
    copy_self(root.path())?;
    let silent = Arc::new(|_: PullProgress| {});
    Image::load_directory(root.path(), IMAGE, ImageConfig::default(), silent).await?;

    let sandbox = Sandbox::builder("embedded").image(IMAGE).memory(256).replace().create().await?;
    let program = format!("/{PROGRAM}");
    let output = sandbox
        .exec_with(program, |options| {
            options.arg("inside").env("LD_LIBRARY_PATH", format!("/{LIBRARIES}"))
        })
        .await?;
    std::io::stdout().write_all(output.stdout_bytes())?;
    std::io::stderr().write_all(output.stderr_bytes())?;
    sandbox.stop().await?;
    Sandbox::remove("embedded").await?;
    Image::remove(IMAGE).await?;
    Ok(())
}

/// In the guest.
fn inside() -> Result<()> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let host = read("/proc/sys/kernel/hostname")?;
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let memory = read("/proc/meminfo")?;
    let memory = memory.lines().next().unwrap_or_default();
    writeln!(
        std::io::stdout(),
        "Hello from process {} on {}, Linux {}, {memory}",
        std::process::id(),
        host.trim(),
        kernel.trim(),
    )?;
    Ok(())
}

/// A root directory in which this program runs.
fn copy_self(root: &Path) -> Result<()> {
    fs::copy(std::env::current_exe()?, root.join(PROGRAM)).context("copy this program")?;
    let folder = root.join(LIBRARIES);
    fs::create_dir(&folder)?;
    for library in mapped_libraries()? {
        let name = library.file_name().context("a library has a name")?;
        fs::copy(&library, folder.join(name))
            .with_context(|| format!("copy {}", library.display()))?;
    }
    Ok(())
}

/// The libraries of this process, the loader among them, by its own account (`proc_pid_maps(5)`).
fn mapped_libraries() -> Result<BTreeSet<PathBuf>> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let files = maps.lines().filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])));
    Ok(files.filter(|file| file.to_string_lossy().contains(".so")).collect())
}
