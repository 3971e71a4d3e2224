//! A file system so small that it fills up.

use std::{fs, path::PathBuf, process::Command};

/// Mounted while this is there.
pub(crate) struct SmallDisk(PathBuf);

impl SmallDisk {
    /// One of that size, such as `16M`, at `path`.
    pub(crate) fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir_all(&path).unwrap();
        let disk = Self(path);
        disk.mount_with(&format!("size={size}"));
        disk
    }

    pub(crate) fn resize(&self, size: &str) {
        self.mount_with(&format!("remount,size={size}"));
    }

    fn mount_with(&self, options: &str) {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "msb-test"]).arg(&self.0);
        assert!(mount.status().unwrap().success(), "tests run as root");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a test that fails leaves processes with files on it.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
