//! Drivers, started for real: a guest boots, or it is said why not and nothing is left.
//!
//! Not libtest's `main` but one that calls `init`: the tests are a program that embeds us.

mod devices;
mod escapes;
#[cfg(feature = "libkrun")]
mod libkrun;

use std::{
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Trial};
use microsandbox_runtime::{
    Accel, BUILD, BootStep, BootTimes, Confinement, Devices, EndReason, Error, Guest, LaunchConfig,
    Program, SandboxDir, SandboxLock, SelectedVmm, StartingPoint, VmmKind, init, launch,
    own_program, probe_kvm, wire::ExecDefaults,
};

/// Folder with `vmlinux` and `initramfs.cpio`; set by `cargo xtask test`.
const MSB_TEST_GUEST: &str = "MSB_TEST_GUEST";
/// Folder with OCI layouts.
const MSB_TEST_IMAGES: &str = "MSB_TEST_IMAGES";

fn main() -> ExitCode {
    escapes::begin();
    // Like a program whose `main` is async: there is a thread before `init` is called.
    std::thread::spawn(std::thread::park);
    init();
    let mut tests = vec![
        #[cfg(feature = "libkrun")]
        Trial::test("libkrun_starts_a_kernel_and_is_ended_cleanly", || told(libkrun::starts)),
        Trial::test("a_guest_without_disks_says_which_is_missing", || told(missing_disk)),
        Trial::test("another_build_is_refused_by_name", || told(other_build)),
        Trial::test("a_program_that_knows_no_role_is_named", || told(no_microsandbox)),
        Trial::test("an_ephemeral_sandbox_without_owner_removes_itself", || told(removes_itself)),
        Trial::test("a_probe_is_kept_until_the_host_boots_again", || told(probe_is_kept)),
    ];
    tests.extend(devices::trials());
    tests.extend(escapes::trials());
    libtest_mimic::run(&Arguments::from_args(), tests).exit_code()
}

fn told(test: fn() -> Result<()>) -> Result<(), libtest_mimic::Failed> {
    test().map_err(|error| format!("{error:?}").into())
}

#[expect(clippy::disallowed_methods, reason = "tests are told where guest and images are")]
fn variable(name: &str) -> Result<OsString> {
    std::env::var_os(name).with_context(|| {
        format!("{name} is not set: run `cargo xtask test`, which prepares what tests need")
    })
}

fn test_guest() -> Result<Guest> {
    let folder = PathBuf::from(variable(MSB_TEST_GUEST)?);
    Ok(Guest {
        kernel: folder.join("vmlinux"),
        initramfs: folder.join("initramfs.cpio"),
        arguments: "ignore_loglevel".into(),
    })
}

fn orders(dir: &Path, vmm: SelectedVmm, boot_timeout: Duration) -> Result<LaunchConfig> {
    Ok(LaunchConfig {
        name: "driver-test".into(),
        dir: dir.to_owned(),
        run_id: "run".into(),
        vcpus: 1,
        memory_mib: 192,
        guest: test_guest()?,
        lower: dir.join("lower"),
        vmm,
        devices: Devices::default(),
        templates: None,
        from: StartingPoint::OwnDisk,
        digests: dir.join("digests.json"),
        hostname: "driver-test".into(),
        defaults: ExecDefaults::default(),
        boot_timeout,
        stop_timeout: Duration::from_secs(1),
        idle_timeout: None,
        max_duration: None,
        confinement: Confinement::default(),
        ephemeral: false,
        asked_at_us: 0,
        boot: BootTimes::default(),
        log: "info".into(),
    })
}

/// Boots with empty disks; gives the reason for the end that this must have.
fn end_of_boot(vmm: SelectedVmm, boot_timeout: Duration) -> Result<EndReason> {
    let home = tempfile::tempdir()?;
    let dir = SandboxDir::new(home.path().join("sandbox"));
    let lock = make_sandbox(&dir)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let program = own_program().context("init has run")?;
    let orders = orders(dir.path(), vmm, boot_timeout)?;
    let reason = match runtime.block_on(launch(&program, &orders, lock)) {
        Err(Error::Boot { record, .. }) => record.reason,
        other => bail!("{other:?}"),
    };
    check_nothing_left(&dir)?;
    Ok(reason)
}

/// A sandbox whose disks are there and empty.
fn make_sandbox(dir: &SandboxDir) -> Result<SandboxLock> {
    let lock = dir.create_locked()?;
    fs::write(dir.path().join("lower"), EMPTY_VMDK)?;
    fs::write(dir.path().join("lower.raw"), vec![0; 1 << 20])?;
    fs::write(dir.upper_path(), vec![0; 1 << 20])?;
    Ok(lock)
}

fn check_nothing_left(dir: &SandboxDir) -> Result<()> {
    ensure!(!dir.is_held()?, "the lock is held after the end");
    ensure!(dir.exit_record()?.is_some(), "no exit record");
    ensure!(!dir.socket_path().exists(), "a socket is left");
    ensure!(!mentioned_in_proc(dir.path())?, "a process is left");
    Ok(())
}

/// One extent of 1 MiB beside the descriptor.
const EMPTY_VMDK: &str = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
     createType=\"twoGbMaxExtentFlat\"\n\nRW 2048 FLAT \"lower.raw\" 0\n";

fn mentioned_in_proc(path: &Path) -> Result<bool> {
    let needle = path.as_os_str().as_encoded_bytes();
    for entry in fs::read_dir("/proc")?.flatten() {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if command_line.windows(needle.len()).any(|window| window == needle) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn missing_disk() -> Result<()> {
    let program = Some(PathBuf::from("/usr/bin/qemu-system-x86_64"));
    let vmm = SelectedVmm { kind: VmmKind::Qemu, accel: Accel::Tcg, program, tsc_khz: None };
    match end_of_boot(vmm, Duration::from_secs(60))? {
        EndReason::BootFailed { step: BootStep::Guest(_), detail, .. } => {
            ensure!(detail.contains("/dev/vda"), "{detail}");
            Ok(())
        }
        other => bail!("{other:?}"),
    }
}

/// Launches a sandbox with `program` as its supervisor; gives the error that this must come to.
fn refusal_of(program: &Program) -> Result<Error> {
    let home = tempfile::tempdir()?;
    let path = home.path().join("sandbox");
    let dir = SandboxDir::new(&path);
    let lock = dir.create_locked()?;
    let vmm = SelectedVmm { kind: VmmKind::Qemu, accel: Accel::Tcg, program: None, tsc_khz: None };
    let orders = orders(&path, vmm, Duration::from_secs(1))?;
    let runtime = tokio::runtime::Runtime::new()?;
    let launched = runtime.block_on(launch(program, &orders, lock));
    ensure!(!dir.is_held()?, "the lock is held after the refusal");
    launched.err().context("it was launched")
}

/// A copy of this program whose name of its build was changed, as that of any other build is.
fn other_build() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let other = dir.path().join("other");
    let mut bytes = fs::read("/proc/self/exe")?;
    let ours = BUILD.as_bytes();
    let places: Vec<usize> =
        (0..bytes.len() - ours.len()).filter(|at| bytes[*at..].starts_with(ours)).collect();
    ensure!(!places.is_empty(), "{BUILD} is not in this program");
    for at in places {
        bytes[at + ours.len() - 16..at + ours.len()].copy_from_slice(b"0123456789abcdef");
    }
    fs::write(&other, bytes)?;
    fs::set_permissions(&other, PermissionsExt::from_mode(0o700))?;
    let error = refusal_of(&Program::at(&other))?;
    let Error::ProgramRefused { program, build, why } = &error else { bail!("{error:?}") };
    ensure!(*program == other && build.ends_with("+0123456789abcdef"), "{error:?}");
    ensure!(why.contains(BUILD), "{why}");
    ensure!(error.hint().is_some_and(|hint| hint.contains("MSB_PATH")), "{error:?}");
    Ok(())
}

fn no_microsandbox() -> Result<()> {
    let error = refusal_of(&Program::at("/bin/true"))?;
    let Error::ProgramSilent { program, ended } = &error else { bail!("{error:?}") };
    ensure!(program == Path::new("/bin/true") && ended.contains("exit status: 0"), "{error:?}");
    Ok(())
}

/// From within its walls, and what lies beside it stays.
fn removes_itself() -> Result<()> {
    let home = tempfile::tempdir()?;
    let (path, other) = (home.path().join("sandbox"), home.path().join("other"));
    fs::create_dir(&other)?;
    fs::write(other.join("lock"), "")?;
    let dir = SandboxDir::new(&path);
    let lock = dir.create_locked()?;
    fs::write(home.path().join("lower"), EMPTY_VMDK)?;
    fs::write(home.path().join("lower.raw"), vec![0; 1 << 20])?;
    fs::write(dir.upper_path(), vec![0; 1 << 20])?;
    let program = Some(PathBuf::from("/usr/bin/qemu-system-x86_64"));
    let vmm = SelectedVmm { kind: VmmKind::Qemu, accel: Accel::Tcg, program, tsc_khz: None };
    let mut orders = orders(&path, vmm, Duration::from_secs(60))?;
    orders.lower = home.path().join("lower");
    orders.ephemeral = true;
    let runtime = tokio::runtime::Runtime::new()?;
    let program = own_program().context("init has run")?;
    // Its owner lets go as soon as the run has begun.
    runtime.block_on(async {
        tokio::select! {
            launched = launch(&program, &orders, lock) => bail!("{launched:?}"),
            begun = eventually(|| dir.run_record().is_ok_and(|run| run.is_some())) => begun,
        }
    })?;
    runtime.block_on(eventually(|| !path.exists()))?;
    ensure!(other.join("lock").exists(), "it removed what is not its own");
    Ok(())
}

async fn eventually(holds: impl Fn() -> bool) -> Result<()> {
    let began = std::time::Instant::now();
    while !holds() {
        ensure!(began.elapsed() < Duration::from_secs(60), "waited in vain");
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn probe_is_kept() -> Result<()> {
    let home = tempfile::tempdir()?;
    let cache = home.path().join("kvm-probe.json");
    let program = own_program().context("init has run")?;
    let first = probe_kvm(&program, &cache);
    if !Path::new("/dev/kvm").exists() {
        ensure!(!first.works && !cache.exists(), "{first:?}");
        return Ok(());
    }
    ensure!(probe_kvm(&program, &cache) == first, "{first:?}");
    // A finding of another boot of the host counts for nothing.
    if cache.exists() {
        let kept = fs::read_to_string(&cache)?;
        fs::write(&cache, kept.replacen("\"boot_id\":\"", "\"boot_id\":\"older", 1))?;
        ensure!(probe_kvm(&program, &cache).works == first.works);
    }
    Ok(())
}
