//! QEMU: whether it is there, and whether it is a version this was tried with.

use std::{path::Path, process::Command};

use super::Check;
use crate::home::Home;

/// The oldest that has all we use: the one of Debian 12.
const OLDEST: (u32, u32) = (7, 2);

/// The newest major version that guests were booted with.
const NEWEST_TRIED: u32 = 10;

const INSTALL: &str = "apt-get install qemu-system-x86";

pub(super) fn check(home: &Home, kvm_works: bool) -> Check {
    match home.qemu() {
        Some(path) => judge(&path, &version_text(&path)),
        None if kvm_works && cfg!(feature = "libkrun") => {
            let detail = "not in PATH; libkrun runs sandboxes without it".into();
            Check::warn("qemu", detail, Some(INSTALL.into()))
        }
        None => Check::fail("qemu", "no qemu-system-x86_64 in PATH".into(), Some(INSTALL.into())),
    }
}

/// The first line of what it says of itself.
fn version_text(path: &Path) -> String {
    let output = Command::new(path).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_else(|error| error.to_string());
    text.lines().next().unwrap_or_default().to_owned()
}

fn judge(path: &Path, text: &str) -> Check {
    let detail = format!("{}: {text}", path.display());
    match parse(text) {
        None => Check::fail("qemu", format!("{detail} (no version)"), Some(INSTALL.into())),
        Some(version) if version < OLDEST => {
            let remedy = format!("install QEMU {}.{} or later", OLDEST.0, OLDEST.1);
            Check::fail("qemu", detail, Some(remedy))
        }
        Some((major, _)) if major > NEWEST_TRIED => {
            let remedy = format!(
                "nobody has tried it yet; `msb doctor --boot` does. Up to {NEWEST_TRIED} is known to work"
            );
            Check::warn("qemu", detail, Some(remedy))
        }
        Some(_) => Check::ok("qemu", detail),
    }
}

/// Major and minor of "QEMU emulator version 7.2.22 (Debian ...)".
fn parse(text: &str) -> Option<(u32, u32)> {
    let version = text.strip_prefix("QEMU emulator version ")?;
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    #[test]
    fn versions_are_judged_by_what_was_tried() {
        for (text, verdict) in [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)", Verdict::Ok),
            ("QEMU emulator version 10.0.2", Verdict::Ok),
            ("QEMU emulator version 10.1.0-rc3 (v10.1.0-rc3)", Verdict::Ok),
            ("QEMU emulator version 11.0.0", Verdict::Warn),
            ("QEMU emulator version 7.1.0", Verdict::Fail),
            ("QEMU emulator version 6.2.0", Verdict::Fail),
            ("something else", Verdict::Fail),
            ("", Verdict::Fail),
        ] {
            let check = judge(Path::new("/usr/bin/qemu-system-x86_64"), text);
            assert_eq!(check.verdict, verdict, "{text}");
            assert_eq!(check.remedy.is_some(), verdict != Verdict::Ok, "{text}");
        }
    }
}
