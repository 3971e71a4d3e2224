//! The host: room for state, memory, KVM.

use std::fs;

use microsandbox_runtime::KvmProbe;

use super::Check;
use crate::{SandboxConfig, home::Home};

/// Room below which a first image may not fit.
const LOW_SPACE_BYTES: u64 = 2 << 30;

pub(super) fn check_home(home: &Home) -> Check {
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

/// Whether a sandbox that asks for nothing in particular has the memory it is given.
pub(super) fn check_memory() -> Check {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    judge_memory(available_mib(&text))
}

fn judge_memory(available_mib: Option<u64>) -> Check {
    let wanted = u64::from(SandboxConfig::default().memory_mib);
    let Some(available) = available_mib else {
        return Check::warn("memory", "/proc/meminfo says nothing of it".into(), None);
    };
    let detail = format!("{available} MiB available; a sandbox has {wanted} unless told otherwise");
    if available < wanted {
        let remedy = "end something, or give sandboxes less with --memory".to_owned();
        return Check::warn("memory", detail, Some(remedy));
    }
    Check::ok("memory", detail)
}

/// `MemAvailable` of `proc_meminfo(5)`.
fn available_mib(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024)
}

pub(super) fn judge_kvm(probe: &KvmProbe) -> Check {
    let detail = match probe.took_us {
        0 => probe.detail.clone(),
        took_us => format!("{} ({}.{:03} ms)", probe.detail, took_us / 1000, took_us % 1000),
    };
    if probe.works {
        return Check::ok("kvm", detail);
    }
    Check::warn("kvm", detail, Some(kvm_remedy(&probe.detail).into()))
}

fn kvm_remedy(detail: &str) -> &'static str {
    if detail.contains("ermission denied") {
        return "sudo usermod -aG kvm $USER, then log in again";
    }
    if detail.contains("No such file") {
        return "enable virtualisation in the firmware, or nested virtualisation on the host; \
                sandboxes run without it, several times slower";
    }
    "sandboxes run without it, in software emulation, several times slower"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn memory_is_enough_from_what_one_sandbox_takes() {
        let text = "MemTotal:        8123456 kB\nMemAvailable:     524288 kB\nBuffers: 1 kB\n";
        assert_eq!(available_mib(text), Some(512));
        assert_eq!(available_mib("MemTotal: 5 kB\n"), None);
        for (mib, verdict) in
            [(Some(512), Verdict::Ok), (Some(511), Verdict::Warn), (None, Verdict::Warn)]
        {
            assert_eq!(judge_memory(mib).verdict, verdict, "{mib:?}");
        }
    }

    #[test]
    fn every_finding_about_kvm_has_its_remedy() {
        for (detail, remedy) in [
            ("open /dev/kvm: Permission denied (os error 13)", "usermod"),
            ("open /dev/kvm: No such file or directory (os error 2)", "firmware"),
            ("KVM does not run guest code at usable speed", "emulation"),
        ] {
            let check = judge_kvm(&KvmProbe { works: false, detail: detail.into(), took_us: 0 });
            assert_eq!((check.verdict, check.detail.as_str()), (Verdict::Warn, detail));
            assert!(check.remedy.unwrap().contains(remedy), "{detail}");
        }
        let works = KvmProbe { works: true, detail: "KVM runs guest code".into(), took_us: 2050 };
        assert_eq!(judge_kvm(&works).detail, "KVM runs guest code (2.050 ms)");
    }
}
