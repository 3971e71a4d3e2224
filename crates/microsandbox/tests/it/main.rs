//! The public API against real guests, from a program that is its own supervisor.
//!
//! `cargo xtask test` says where a guest and images are; without it these tests fail and say so.

mod clock;
mod clones;
mod ends;
mod exec;
mod fidelity;
mod files;
mod flow;
mod handles;
mod jobs;
#[cfg(feature = "stop-at-step")]
mod kills;
mod lifecycle;
mod limits;
mod machines;
mod metrics;
mod pauses;
mod snapshots;
mod stuck;
mod templates;
#[cfg(feature = "stop-at-step")]
mod walls;

use std::{
    fs,
    future::Future,
    os::unix::{fs::symlink, process::ExitStatusExt},
    path::PathBuf,
    process::{Command, ExitCode},
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use microsandbox::{PullProgress, Sandbox, env, image::Image};

/// Folder with `vmlinux` and `initramfs.cpio`.
const MSB_TEST_GUEST: &str = "MSB_TEST_GUEST";
/// Folder with OCI layouts.
const MSB_TEST_IMAGES: &str = "MSB_TEST_IMAGES";
/// Name of the small image in the store.
const IMAGE: &str = "busybox";

fn main() -> Result<ExitCode> {
    #[cfg(feature = "stop-at-step")]
    microsandbox::call_at("supervisor.confined", walls::try_to_get_out);
    microsandbox::reexec::init();
    #[cfg(feature = "stop-at-step")]
    if let Some(done) = kills::owner() {
        return done.map(|()| ExitCode::SUCCESS);
    }
    let arguments = Arguments::from_args();
    if arguments.list {
        return Ok(libtest_mimic::run(&arguments, trials()).exit_code());
    }
    if env::read(MSB_HOME_IS_OURS).is_none() {
        return run_in_fresh_home();
    }
    prepare()?;
    Ok(libtest_mimic::run(&arguments, trials()).exit_code())
}

/// Set in the process that runs the tests proper.
const MSB_HOME_IS_OURS: &str = "MSB_TEST_HOME_IS_OURS";

/// Runs this program again with a home of its own: the environment is read once, at the start.
fn run_in_fresh_home() -> Result<ExitCode> {
    let home = tempfile::tempdir()?;
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(env::MSB_HOME, home.path())
        // Templates have tests of their own; the others want the processor for themselves.
        .env(env::MSB_BOOT, "cold")
        .env(MSB_HOME_IS_OURS, "1")
        .status()?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    Ok(ExitCode::from(u8::try_from(code)?))
}

fn trials() -> Vec<Trial> {
    let trials = [
        clock::trials(),
        ends::trials(),
        exec::trials(),
        fidelity::trials(),
        files::trials(),
        flow::trials(),
        handles::trials(),
        jobs::trials(),
        #[cfg(feature = "stop-at-step")]
        kills::trials(),
        lifecycle::trials(),
        limits::trials(),
        clones::trials(),
        machines::trials(),
        metrics::trials(),
        pauses::trials(),
        stuck::trials(),
        templates::trials(),
        snapshots::trials(),
        #[cfg(feature = "stop-at-step")]
        walls::trials(),
    ];
    trials.into_iter().flatten().collect()
}

/// A test that is an async function.
fn trial<F>(name: &str, test: fn() -> F) -> Trial
where
    F: Future<Output = Result<()>> + 'static,
{
    Trial::test(name, move || {
        runtime().block_on(test()).map_err(|error| format!("{error:?}").into())
    })
}

/// One runtime for all tests, as a program has.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime starts")
    })
}

/// Puts the guest and the image into the home.
fn prepare() -> Result<()> {
    let found = |name| {
        env::read(name).map(PathBuf::from).with_context(|| {
            format!("{name} is not set: run `cargo xtask test`, which prepares what tests need")
        })
    };
    let home = found(env::MSB_HOME)?;
    fs::create_dir_all(home.join("guest"))?;
    symlink(found(MSB_TEST_GUEST)?, home.join("guest/test"))?;
    fs::write(home.join("guest/current"), "test")?;
    let layout = found(MSB_TEST_IMAGES)?.join("busybox");
    let silent = Arc::new(|_: PullProgress| {});
    let loaded = runtime().block_on(Image::load(&layout, Some(IMAGE), silent))?;
    ensure!(loaded.len() == 1, "{} holds one image", layout.display());
    Ok(())
}

/// A sandbox with the smallest machine that boots quickly.
fn sandbox(name: &str) -> microsandbox::SandboxBuilder {
    Sandbox::builder(name).image(IMAGE).memory(192)
}

/// The directory of a sandbox.
fn directory(name: &str) -> PathBuf {
    PathBuf::from(env::read(env::MSB_HOME).unwrap_or_default()).join("sandboxes").join(name)
}

/// How many processes of the sandbox have a command line that contains `text`.
async fn processes(sandbox: &Sandbox, text: &str) -> Result<usize> {
    let none: [&str; 0] = [];
    let list = sandbox.exec("ps", none).await?.stdout()?;
    ensure!(list.contains("/init"), "no list of processes: {list}");
    Ok(list.lines().filter(|line| line.contains(text)).count())
}
