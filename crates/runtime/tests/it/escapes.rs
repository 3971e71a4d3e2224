//! A program that stands where the VMM stands, confined by the very same code, and tries to get out.
//!
//! For QEMU this test program is executed in its place; for libkrun it is called where libkrun would be.
//! What it has found out it writes to the one file it may write, the sandbox's disk. It is started with
//! every layer, with each alone, and with none: a layer that is left out, or refuses less than is said
//! of it here, fails the test, and so does an attempt that nothing was in the way of.

mod attempts;
mod sys;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    net::TcpListener,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox_runtime::{
    Accel, Belongings, Confinement, DeviceSockets, Error, Guest, Layer, SandboxDir, SelectedVmm,
    ShareSpec, VmmKind, confine, launch, own_program,
};
use serde::{Deserialize, Serialize};

use self::attempts::{ATTEMPTS, Attempt};

/// What the prisoner must know to try anything; it reads it from the disk it may read.
#[derive(Debug, Serialize, Deserialize)]
struct Facts {
    home: PathBuf,
    tcp_port: u16,
    udp_port: u16,
    abstract_name: String,
    shared_memory: i32,
}

/// What came of each attempt: an error number, 0 for success.
type Findings = BTreeMap<String, i32>;

/// Whose place the prisoner takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    #[cfg_attr(not(feature = "stop-at-step"), expect(dead_code, reason = "called in its place"))]
    Libkrun,
    Qemu,
    /// libkrun that serves a writable share beside the read-only one that all have.
    #[cfg_attr(not(feature = "stop-at-step"), expect(dead_code, reason = "called in its place"))]
    Sharing,
}

impl Place {
    fn kind(self) -> VmmKind {
        match self {
            Self::Libkrun | Self::Sharing => VmmKind::Libkrun,
            Self::Qemu => VmmKind::Qemu,
        }
    }
}

pub(crate) fn trials() -> Vec<Trial> {
    let trial = |name: &str, place| {
        Trial::test(format!("escapes::{name}"), move || {
            every_layer_refuses_what_it_claims(place).map_err(|error| format!("{error:?}").into())
        })
    };
    vec![
        trial("from_qemu", Place::Qemu),
        #[cfg(feature = "stop-at-step")]
        trial("from_libkrun", Place::Libkrun),
        #[cfg(feature = "stop-at-step")]
        trial("from_libkrun_that_shares", Place::Sharing),
        Trial::test("escapes::the_host_has_what_is_tested", || {
            host_has_all().map_err(|error| format!("{error:?}").into())
        }),
    ]
}

/// In `main`, before anything else: this process may be the one that was started as QEMU.
pub(crate) fn begin() {
    #[cfg(feature = "stop-at-step")]
    microsandbox_runtime::step::call_at("vmm.confined", instead_of_libkrun);
    let arguments: Vec<_> = std::env::args().collect();
    if arguments.iter().any(|argument| argument == "-nodefaults") {
        let disk = arguments.iter().find_map(|argument| {
            let (options, path) = argument.split_once("file.filename=")?;
            options.contains("node-name=upper").then(|| PathBuf::from(path))
        });
        try_everything(&disk.expect("QEMU is told of the disk"));
    }
}

/// The VMM process of a libkrun sandbox whose name is the directory of the test.
#[cfg(feature = "stop-at-step")]
fn instead_of_libkrun() {
    let home = std::env::args_os().nth(1).map(PathBuf::from).unwrap_or_default();
    let sandbox = home.join("sandboxes/libkrun");
    if sandbox.is_absolute() && sys::exists(&sandbox) {
        try_everything(&SandboxDir::new(sandbox).upper_path());
    }
}

fn try_everything(disk: &Path) -> ! {
    let facts: Facts = serde_json::from_slice(&fs::read(disk).expect("the disk can be read"))
        .expect("the disk holds the facts");
    let findings: Findings =
        ATTEMPTS.iter().map(|attempt| (attempt.name.to_owned(), (attempt.run)(&facts))).collect();
    let text = serde_json::to_vec(&findings).expect("findings are numbers");
    fs::write(disk, text).expect("the disk can be written");
    sys::end()
}

fn every_layer_refuses_what_it_claims(place: Place) -> Result<()> {
    let all = with(place, &Layer::ALL)?;
    let alone: Vec<(Layer, Findings)> = Layer::ALL
        .into_iter()
        .map(|layer| Ok((layer, with(place, &[layer])?)))
        .collect::<Result<_>>()?;
    let none = with(place, &[])?;
    let mut wrong = Vec::new();
    for Attempt { name, refused_by, control, .. } in ATTEMPTS {
        let found = |findings: &Findings| findings.get(*name).copied().unwrap_or(-1);
        let refused_by = refused_by(place);
        if (found(&all) == 0) != refused_by.is_empty() {
            wrong.push(format!("{name}: all layers give {}", found(&all)));
        }
        for (layer, errnos) in refused_by {
            let (_, findings) =
                alone.iter().find(|(alone, _)| alone == layer).context("a layer")?;
            let errno = found(findings);
            if !errnos.contains(&errno) {
                wrong.push(format!("{name}: {layer} alone gives {errno}, not one of {errnos:?}"));
            }
        }
        if *control && found(&none) != 0 {
            wrong.push(format!("{name}: fails unconfined, too, with {}", found(&none)));
        }
    }
    ensure!(wrong.is_empty(), "{place:?}:\n{}", wrong.join("\n"));
    Ok(())
}

/// What the prisoner finds with these layers around it.
fn with(place: Place, layers: &[Layer]) -> Result<Findings> {
    let home = tempfile::tempdir()?;
    let home = home.path();
    let kind = place.kind();
    for folder in ["sandboxes/other", "db", "guest", "images", "inputs", "outputs"] {
        fs::create_dir_all(home.join(folder))?;
    }
    for file in [
        "secret",
        "program",
        "db/msb.db",
        "guest/vmlinux",
        "guest/initramfs.cpio",
        "images/other.erofs",
        "images/lower.raw",
        "inputs/file",
        "inputs/other",
        "outputs/file",
        "outputs/other",
        "outputs/third",
        "sandboxes/other/upper.ext4",
    ] {
        fs::write(home.join(file), vec![0; 1 << 20])?;
    }
    fs::write(home.join("images/lower.vmdk"), crate::EMPTY_VMDK)?;
    fs::set_permissions(home.join("program"), Permissions::from_mode(0o755))?;
    let tcp = TcpListener::bind("127.0.0.1:0")?;
    let udp = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let _listens = UnixListener::bind(home.join("sandboxes/other/agent.sock"))?;
    let abstract_name = format!("{}/abstract", home.display());
    let _listens_too = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name)?)?;
    let shared = sys::SharedMemory::make()?;
    let facts = Facts {
        home: home.to_owned(),
        tcp_port: tcp.local_addr()?.port(),
        udp_port: udp.local_addr()?.port(),
        abstract_name,
        shared_memory: shared.key(),
    };
    let dir = SandboxDir::new(home.join("sandboxes").join(kind.to_string()));
    let lock = dir.create_locked()?;
    fs::write(dir.upper_path(), serde_json::to_vec(&facts)?)?;
    let vmm = SelectedVmm {
        kind,
        accel: Accel::Tcg,
        program: Some(std::env::current_exe()?),
        tsc_khz: None,
    };
    let mut orders = crate::orders(dir.path(), vmm, Duration::from_secs(30))?;
    orders.name = home.display().to_string();
    orders.guest = Guest {
        kernel: home.join("guest/vmlinux"),
        initramfs: home.join("guest/initramfs.cpio"),
        arguments: String::new(),
    };
    orders.lower = home.join("images/lower.vmdk");
    let share =
        |tag: &str, read_only| ShareSpec { tag: tag.into(), path: home.join(tag), read_only };
    orders.devices.shares.push(share("inputs", true));
    orders.devices.shares.extend((place == Place::Sharing).then(|| share("outputs", false)));
    let (_backend, near) = UnixStream::pair()?;
    let backends = if kind == VmmKind::Qemu { vec![near.into()] } else { Vec::new() };
    let sockets = DeviceSockets { net: None, shares: backends };
    orders.confinement = Confinement { layers: layers.to_vec(), required: true };
    let runtime = tokio::runtime::Runtime::new()?;
    let program = own_program().context("init has run")?;
    match runtime.block_on(launch(&program, &orders, Belongings { lock, sockets })) {
        Err(Error::Boot { .. }) => {}
        other => bail!("{other:?}"),
    }
    let run = dir.run_record()?.context("a record of the run")?;
    let findings = fs::read(dir.upper_path())?;
    serde_json::from_slice(&findings)
        .with_context(|| format!("no findings: {run:?} {:?}", dir.exit_record()))
}

/// Without it the others would fail as well, and not say why.
fn host_has_all() -> Result<()> {
    let host = confine::probe();
    for layer in Layer::ALL {
        ensure!(host.lacks(layer).is_none(), "the tests need a host with {layer}: {host:?}");
    }
    Ok(())
}
