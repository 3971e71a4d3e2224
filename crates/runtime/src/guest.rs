//! Guest builds on disk: a kernel and an initial root that belong together.
//!
//! ```text
//! <guests>/<build id>/vmlinux
//!                     initramfs.cpio
//!                     verified         how both files were when their bytes were last looked at
//! <guests>/current                     a line: the build id
//! ```
//!
//! A build is never edited, so a sandbox that is being started keeps the files it was given. Builds
//! are installed from outside, or unpacked from a program that carries one (`carried.rs`). Whoever installs
//! one removes those before it that nobody holds ([`Guest::hold`]).

#[cfg(feature = "embed-guest")]
pub(crate) mod carried;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Name of the kernel within a build.
const KERNEL: &str = "vmlinux";
/// Name of the initial root within a build.
const INITRAMFS: &str = "initramfs.cpio";
/// Names the build that is booted.
const CURRENT: &str = "current";

/// The files a guest boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Uncompressed ELF kernel with a PVH entry.
    pub kernel: PathBuf,
    /// newc archive with the agent as `/init`.
    pub initramfs: PathBuf,
    /// More words for the kernel's command line, after ours.
    pub arguments: String,
}

impl Guest {
    /// The files of the build in `dir`, there or not.
    fn in_dir(dir: &Path) -> Self {
        Self { kernel: dir.join(KERNEL), initramfs: dir.join(INITRAMFS), arguments: String::new() }
    }

    /// Keeps the build from being removed until this is dropped; `None` when it is gone already. A VMM
    /// has read all of it by the time its guest is up.
    pub fn hold(&self) -> Option<BuildHold> {
        let dir = File::open(self.initramfs.parent()?).ok()?;
        dir.lock_shared().ok()?;
        self.initramfs.exists().then_some(BuildHold { _dir: dir })
    }

    /// Says which file is missing, if one is.
    ///
    /// # Errors
    /// [`Error::MissingGuest`].
    pub fn check(&self) -> Result<()> {
        for (what, path) in [("kernel", &self.kernel), ("initramfs", &self.initramfs)] {
            if !path.is_file() {
                return Err(Error::MissingGuest { what, path: path.clone() });
            }
        }
        Ok(())
    }
}

/// A hold on a build: a shared `flock(2)` of its directory.
#[derive(Debug)]
pub struct BuildHold {
    _dir: File,
}

/// The directory of all builds.
#[derive(Debug, Clone)]
pub struct GuestStore {
    dir: PathBuf,
}

impl GuestStore {
    /// The builds in `dir`, which need not be there.
    pub fn at(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The build that was installed last. Its files need not be there.
    pub fn current(&self) -> Guest {
        let current = fs::read_to_string(self.dir.join(CURRENT)).unwrap_or_default();
        Guest::in_dir(&self.dir.join(current.trim()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_held_build_is_not_locked_by_who_would_remove_it() {
        let home = tempfile::tempdir().unwrap();
        let guest = Guest::in_dir(home.path());
        assert!(guest.hold().is_none(), "there is nothing to hold");
        fs::write(&guest.initramfs, "").unwrap();
        let dir = File::open(home.path()).unwrap();
        let hold = guest.hold().unwrap();
        assert!(dir.try_lock().is_err());
        drop(hold);
        dir.try_lock().unwrap();
    }
}
