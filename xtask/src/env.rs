//! Every environment variable xtask reads, and the only place where it reads one.

use std::{ffi::OsString, path::PathBuf};

/// Home of installed files; default `~/.microsandbox`. The product reads the same variable.
pub(crate) const MSB_HOME: &str = "MSB_HOME";

/// Which VMM sandboxes run with; the product reads the same variable.
pub(crate) const MSB_VMM: &str = "MSB_VMM";

/// Folder with `vmlinux` and `initramfs.cpio` that VM tests boot; set by `cargo xtask test`.
pub(crate) const MSB_TEST_GUEST: &str = "MSB_TEST_GUEST";

/// Folder of image fixtures that tests read; set by `cargo xtask test`.
pub(crate) const MSB_TEST_IMAGES: &str = "MSB_TEST_IMAGES";

const CARGO: &str = "CARGO";
const HOME: &str = "HOME";
/// Folders searched for programs.
pub(crate) const PATH: &str = "PATH";
const XDG_CACHE_HOME: &str = "XDG_CACHE_HOME";

/// The cargo that started us, so that a pinned toolchain stays pinned in what we start.
pub(crate) fn cargo() -> OsString {
    read(CARGO).unwrap_or_else(|| "cargo".into())
}

/// Names of the variables in which cargo describes the package that it runs: this one.
pub(crate) fn of_this_package() -> impl Iterator<Item = OsString> {
    std::env::vars_os().map(|(name, _)| name).filter(|name| {
        let name = name.as_encoded_bytes();
        name.starts_with(b"CARGO_PKG_") || name.starts_with(b"CARGO_MANIFEST_")
    })
}

/// The user's home folder.
pub(crate) fn home() -> Option<PathBuf> {
    read(HOME).map(PathBuf::from)
}

/// [`MSB_HOME`] where it is set.
pub(crate) fn msb_home() -> Option<PathBuf> {
    read(MSB_HOME).map(PathBuf::from)
}

/// Folders searched for programs.
pub(crate) fn path() -> Vec<PathBuf> {
    read(PATH).map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// The user's cache folder where the XDG variable names one.
pub(crate) fn xdg_cache_home() -> Option<PathBuf> {
    read(XDG_CACHE_HOME).map(PathBuf::from)
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn read(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}
