//! libkrun, as far as this machine's KVM goes.
//!
//! Where it works the guest gets to its disks, which are empty. Where guest code crawls its kernel
//! still begins to speak, and then its owner is gone. Where there is none libkrun says so.

use std::{fs, os::unix::net::UnixStream, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use microsandbox_runtime::{
    Accel, Belongings, BootStep, DeviceSockets, EndReason, Error, LogWatch, MacAddress, NetSpec,
    SandboxDir, SelectedVmm, ShareSpec, VmmKind, launch, own_program,
};

use super::{check_nothing_left, make_sandbox, orders};

/// Said by every kernel that has found out where it runs, before it has a console of its own.
const EARLY_LINE: &str = "Hypervisor detected: KVM";

/// Longest time until then, on a busy machine whose KVM emulates instruction by instruction.
const DEADLINE: Duration = Duration::from_secs(60);

pub(super) fn starts() -> Result<()> {
    let home = tempfile::tempdir()?;
    let dir = SandboxDir::new(home.path().join("sandbox"));
    let lock = make_sandbox(&dir)?;
    let vmm =
        SelectedVmm { kind: VmmKind::Libkrun, accel: Accel::Kvm, program: None, tsc_khz: None };
    let mut orders = orders(dir.path(), vmm, DEADLINE)?;
    let share = |tag: &str, read_only| ShareSpec {
        tag: tag.into(),
        path: home.path().to_owned(),
        read_only,
    };
    orders.devices.shares = vec![share("inputs", true), share("outputs", false)];
    orders.devices.net = Some(NetSpec { mac: MacAddress([2, 0, 0, 0, 0, 1]) });
    let (_far, near) = UnixStream::pair()?;
    let sockets = DeviceSockets { net: Some(near.into()), shares: Vec::new() };
    let belongings = Belongings { lock, sockets };
    let program = own_program().context("init has run")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let failed = runtime.block_on(async {
        tokio::select! {
            launched = launch(&program, &orders, belongings) => match launched {
                Err(Error::Boot { record, .. }) => Ok(Some(record.reason)),
                other => bail!("{other:?}"),
            },
            // The launch is given up then, as by an owner that dies.
            spoke = early_line(&dir) => spoke.map(|()| None),
        }
    })?;
    dir.wait_until_free()?;
    check_nothing_left(&dir)?;
    let has_kvm = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok();
    match failed {
        None => {
            let end = dir.exit_record()?.context("no exit record")?;
            ensure!(end.reason == EndReason::OwnerExited, "{end:?}");
        }
        Some(EndReason::BootFailed { step: BootStep::Guest(_), .. }) => ensure!(has_kvm),
        Some(EndReason::BootFailed { step: BootStep::Kernel, detail, .. }) => {
            ensure!(!has_kvm && detail.contains("krun_start_enter"), "{detail}");
        }
        Some(other) => bail!("{other:?}"),
    }
    Ok(())
}

async fn early_line(dir: &SandboxDir) -> Result<()> {
    fs::create_dir_all(dir.logs_path())?;
    let watch = LogWatch::new(dir)?;
    loop {
        let log = fs::read(dir.kernel_log_path()).unwrap_or_default();
        if String::from_utf8_lossy(&log).contains(EARLY_LINE) {
            return Ok(());
        }
        watch.changed().await?;
    }
}
