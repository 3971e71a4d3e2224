//! A guest: kernel and initramfs that belong together, installed under their build id.
//!
//! ```text
//! <home>/guest/<build id>/vmlinux
//!                         initramfs.cpio
//! <home>/guest/current      a line: the build id
//! ```
//!
//! A build is never edited, and removed when there is a newer one and no start holds it: whoever boots
//! from a build has a shared lock on its folder until the guest is up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    agent,
    cli::{AgentOptions, KernelOptions},
    digest, kernel, terminal,
};

/// Name of the kernel within a build.
pub(crate) const KERNEL: &str = "vmlinux";
/// Name of the initramfs within a build.
pub(crate) const INITRAMFS: &str = "initramfs.cpio";

/// Where the parts of a guest are.
#[derive(Debug)]
pub(crate) struct Guest {
    /// PVH kernel.
    pub(crate) kernel: PathBuf,
    /// Initramfs with the agent.
    pub(crate) initramfs: PathBuf,
}

impl Guest {
    /// Builds what is not up to date.
    pub(crate) fn build(kernel: &KernelOptions) -> Result<Self> {
        let kernel = kernel::ensure(kernel)?;
        let initramfs = agent::ensure(&AgentOptions::default())?.initramfs;
        Ok(Self { kernel, initramfs })
    }

    /// Copies the guest below `home`, makes it the current one and removes old ones; returns its folder.
    pub(crate) fn install(&self, home: &Path) -> Result<PathBuf> {
        let guests = home.join("guest");
        fs::create_dir_all(&guests).with_context(|| format!("create {}", guests.display()))?;
        let id = self.build_id()?;
        let build = guests.join(&id);
        if !build.is_dir() {
            terminal::step(format_args!("Installing guest {id}"));
            let work = tempfile::Builder::new().prefix(".new-").tempdir_in(&guests)?;
            copy(&self.kernel, &work.path().join(KERNEL))?;
            copy(&self.initramfs, &work.path().join(INITRAMFS))?;
            fs::rename(work.path(), &build)
                .with_context(|| format!("publish {}", build.display()))?;
        }
        write_current(&guests, &id)?;
        remove_old(&guests, &id)?;
        Ok(build)
    }

    fn build_id(&self) -> Result<String> {
        let parts = [digest::of_file(&self.kernel)?, digest::of_file(&self.initramfs)?];
        Ok(digest::key(&parts.each_ref().map(String::as_str)))
    }
}

/// Copies and syncs: what a rename publishes must be on disk before it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let what = || format!("copy {} to {}", from.display(), to.display());
    fs::copy(from, to).with_context(what)?;
    fs::File::open(to).and_then(|file| file.sync_all()).with_context(what)
}

/// Names `id` the current build; a reader sees the old name or the new one.
fn write_current(guests: &Path, id: &str) -> Result<()> {
    let current = guests.join("current");
    let what = || format!("write {}", current.display());
    let line = format!("{id}\n");
    if fs::read_to_string(&current).is_ok_and(|present| present == line) {
        return Ok(());
    }
    let work = tempfile::Builder::new().prefix(".new-").tempdir_in(guests).with_context(what)?;
    let fresh = work.path().join("current");
    fs::write(&fresh, line).with_context(what)?;
    fs::File::open(&fresh).and_then(|file| file.sync_all()).with_context(what)?;
    fs::rename(&fresh, &current).with_context(what)
}

/// Removes every build but `current` that nobody boots from at this moment.
fn remove_old(guests: &Path, current: &str) -> Result<()> {
    let what = || format!("remove old builds from {}", guests.display());
    let work = tempfile::Builder::new().prefix(".old-").tempdir_in(guests).with_context(what)?;
    for entry in fs::read_dir(guests).with_context(what)? {
        let entry = entry.with_context(what)?;
        let name = entry.file_name();
        let is_build = entry.file_type().with_context(what)?.is_dir();
        if !is_build || name == current || name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let build = fs::File::open(entry.path()).with_context(what)?;
        if build.try_lock().is_ok() {
            // Whole for whoever finds it in this moment, and then not there.
            fs::rename(entry.path(), work.path().join(&name)).with_context(what)?;
        }
    }
    work.close().with_context(what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_part_makes_another_build_and_the_old_one_goes_once_nobody_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let guest = Guest { kernel: path("k"), initramfs: path("i") };
        fs::write(path("k"), "kernel").unwrap();
        fs::write(path("i"), "agent 1").unwrap();
        let first = guest.install(&path("home")).unwrap();
        assert_eq!(guest.install(&path("home")).unwrap(), first);

        let hold = fs::File::open(&first).unwrap();
        hold.lock_shared().unwrap();
        fs::write(path("i"), "agent 2").unwrap();
        let second = guest.install(&path("home")).unwrap();
        assert_ne!(first, second);
        assert_eq!(fs::read_to_string(first.join(INITRAMFS)).unwrap(), "agent 1");
        let current = fs::read_to_string(path("home").join("guest/current")).unwrap();
        assert_eq!(path("home").join("guest").join(current.trim_end()), second);

        drop(hold);
        assert_eq!(guest.install(&path("home")).unwrap(), second);
        assert!(!first.exists());
        let left = fs::read_dir(path("home").join("guest")).unwrap().count();
        assert_eq!(left, 2, "a build and the file that names it");
    }
}
