//! The guest: which kernel and which agent sandboxes boot.

use std::{fs, path::Path};

use microsandbox_runtime::{Guest, explained};

use super::Check;
use crate::MicrosandboxResult;

/// What every Linux kernel has in it (`init/version.c`).
const BANNER: &[u8] = b"Linux version ";

pub(super) fn check(guest: &MicrosandboxResult<Guest>) -> Vec<Check> {
    let guest = match guest {
        Ok(guest) => guest,
        Err(error) => {
            return vec![Check::fail("guest", explained(error), error.hint())];
        }
    };
    let kernel = check_file("guest kernel", &guest.kernel, |path| {
        let version = fs::read(path).ok().and_then(|bytes| kernel_version(&bytes));
        version.map_or_else(|| Err("it names no version".into()), Ok)
    });
    // Its agent says its own version once it runs: `--boot` has it.
    let agent = check_file("guest agent", &guest.initramfs, |path| {
        let build = path.parent().and_then(Path::file_name).unwrap_or_default();
        Ok(format!("build {}", build.display()))
    });
    vec![kernel, agent]
}

fn check_file(
    name: &'static str,
    path: &Path,
    what: impl FnOnce(&Path) -> Result<String, String>,
) -> Check {
    let remedy = || Some("cargo xtask setup".to_owned());
    if !path.is_file() {
        return Check::fail(name, format!("{} is missing", path.display()), remedy());
    }
    match what(path) {
        Ok(what) => Check::ok(name, format!("{what}, {}", path.display())),
        Err(problem) => Check::fail(name, format!("{}: {problem}", path.display()), remedy()),
    }
}

/// The word after the banner.
fn kernel_version(kernel: &[u8]) -> Option<String> {
    let at = kernel.windows(BANNER.len()).position(|window| window == BANNER)?;
    let rest = &kernel[at + BANNER.len()..];
    let word = rest.split(|byte| byte.is_ascii_whitespace()).next()?;
    String::from_utf8(word.to_vec()).ok().filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_is_named_by_its_banner() {
        let kernel = b"\x7fELF...Linux version 6.12.1-microsandbox (root@host) ...";
        assert_eq!(kernel_version(kernel).as_deref(), Some("6.12.1-microsandbox"));
        assert_eq!(kernel_version(b"\x7fELF"), None);
    }
}
