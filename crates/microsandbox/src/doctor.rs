//! What this machine has and lacks for running sandboxes.

use std::process::Command;

use microsandbox_runtime::{Layer, confine, own_program};

use crate::{MicrosandboxResult, home::Home};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What mends it, as a command where there is one.
    pub remedy: Option<String>,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Sandboxes run, but not as well as they could.
    Warn,
    /// Sandboxes do not run.
    Fail,
}

/// Looks at everything a sandbox needs. Changes nothing but the kept result of the KVM probe.
///
/// # Errors
/// [`crate::MicrosandboxError::InvalidConfig`] when the settings themselves are wrong.
pub fn examine() -> MicrosandboxResult<Vec<Check>> {
    let home = Home::from_env()?;
    let mut checks = vec![check_home(&home)];
    let probe = match home.program() {
        Ok(program) => {
            let detail = match own_program() {
                Some(_) => "this program".to_owned(),
                None => program.path().display().to_string(),
            };
            checks.push(Check::ok("supervisor", detail));
            home.probe(&program)
        }
        Err(error) => {
            let detail = error.to_string();
            checks.push(Check::fail("supervisor", detail.clone(), error.hint()));
            microsandbox_runtime::KvmProbe { works: false, detail, took_us: 0 }
        }
    };
    checks.push(if probe.works {
        Check::ok("kvm", format!("{} ({} µs)", probe.detail, probe.took_us))
    } else {
        Check::warn("kvm", probe.detail.clone(), kvm_remedy(&probe.detail))
    });
    checks.push(check_qemu(&home, probe.works));
    checks.extend(check_confinement());
    let guest = home.guest()?;
    for (name, path) in [("guest kernel", &guest.kernel), ("guest initramfs", &guest.initramfs)] {
        let remedy = || Some("cargo xtask setup".to_owned());
        checks.push(if path.is_file() {
            Check::ok(name, path.display().to_string())
        } else {
            Check::fail(name, format!("{} is missing", path.display()), remedy())
        });
    }
    checks.push(match home.selected_vmm(&probe) {
        Ok(vmm) => Check::ok("driver", format!("{} with {}", vmm.kind, vmm.accel)),
        Err(error) => Check::fail("driver", error_chain(&error), error.hint()),
    });
    Ok(checks)
}

impl Check {
    fn ok(name: &'static str, detail: String) -> Self {
        Self { name, verdict: Verdict::Ok, detail, remedy: None }
    }

    fn warn(name: &'static str, detail: String, remedy: Option<String>) -> Self {
        Self { name, verdict: Verdict::Warn, detail, remedy }
    }

    fn fail(name: &'static str, detail: String, remedy: Option<String>) -> Self {
        Self { name, verdict: Verdict::Fail, detail, remedy }
    }
}

/// Room below which a first image may not fit.
const LOW_SPACE_BYTES: u64 = 2 << 30;

fn check_home(home: &Home) -> Check {
    let root = home.path();
    // A home that is not there yet is made below the nearest directory that is.
    let Some(there) = root.ancestors().find(|path| path.is_dir()) else {
        return Check::fail("home", format!("{} cannot be made", root.display()), None);
    };
    let writable = nix::unistd::access(there, nix::unistd::AccessFlags::W_OK);
    if let Err(errno) = writable {
        let detail = format!("{} is not writable: {errno}", there.display());
        return Check::fail("home", detail, Some("name another with MSB_HOME".into()));
    }
    let free = nix::sys::statvfs::statvfs(there)
        .map(|fs| fs.blocks_available() * fs.fragment_size())
        .unwrap_or_default();
    let detail = format!("{}, {} MiB free", root.display(), free >> 20);
    if free < LOW_SPACE_BYTES {
        return Check::warn("home", detail, Some("free some space, or move MSB_HOME".into()));
    }
    Check::ok("home", detail)
}

/// A sandbox runs without a layer, unless all are required.
fn check_confinement() -> impl Iterator<Item = Check> {
    let host = confine::probe();
    Layer::ALL.into_iter().map(move |layer| match (host.lacks(layer), host.landlock_abi) {
        (Some((_, why)), _) => Check::warn(layer.name(), why, Some(layer_remedy(layer).into())),
        (None, Some(abi)) if layer == Layer::Landlock => {
            Check::ok(layer.name(), format!("interface version {abi}"))
        }
        (None, _) => Check::ok(layer.name(), "available".into()),
    })
}

const fn layer_remedy(layer: Layer) -> &'static str {
    match layer {
        Layer::Landlock => "boot with lsm=landlock,... on Linux 5.13 or later",
        Layer::Namespaces => {
            "let users make namespaces: sysctl user.max_user_namespaces, and what your \
             distribution has beside it (kernel.apparmor_restrict_unprivileged_userns)"
        }
        Layer::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
    }
}

fn check_qemu(home: &Home, kvm_works: bool) -> Check {
    let remedy = Some("apt-get install qemu-system-x86".to_owned());
    match home.qemu() {
        Some(path) => {
            let version = Command::new(&path).arg("--version").output();
            let version =
                version.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
            let version = version.unwrap_or_else(|error| error.to_string());
            let first = version.lines().next().unwrap_or("no version").to_owned();
            Check::ok("qemu", format!("{}: {first}", path.display()))
        }
        None if kvm_works && cfg!(feature = "libkrun") => {
            Check::warn("qemu", "not in PATH; libkrun runs without it".into(), remedy)
        }
        None => Check::fail("qemu", "no qemu-system-x86_64 in PATH".into(), remedy),
    }
}

fn kvm_remedy(detail: &str) -> Option<String> {
    if detail.contains("ermission denied") {
        return Some("sudo usermod -aG kvm $USER, then log in again".into());
    }
    if detail.contains("No such file") {
        return Some(
            "enable virtualisation in the firmware, or nested virtualisation on the host; \
             sandboxes run without it, several times slower"
                .into(),
        );
    }
    Some("sandboxes run without it, in software emulation, several times slower".into())
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
