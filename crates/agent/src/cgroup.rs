//! One control group (cgroup v2) per command: what it started, however deep, is counted and killed
//! together.
//!
//! ```text
//!  /sys/fs/cgroup      the agent
//!    exec              the commands, together as heavy as the agent when both want the CPU
//!      1, 2, 3, …      one command each, removed once empty
//! ```
//!
//! A group is made, and its files opened, before it is needed: that takes as long as starting a
//! command.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use microsandbox_protocol::{ExecLimits, Usage};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::unistd::{mkdir, read, write};

/// Where the kernel's cgroup v2 tree is mounted, by convention of systemd and every container tool.
pub(crate) const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// Controllers a command's group needs.
///
/// `cpu`: the agent and each command get a share, however many processes a command has. `memory`:
/// peak and out-of-memory counts. `pids`: a fork bomb leaves room for others.
const CONTROLLERS: &str = "+cpu +memory +pids";

/// Time in which a limit of processor time is counted: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The parent of all commands' groups.
#[derive(Debug)]
pub(crate) struct Cgroups {
    parent: PathBuf,
    /// Most processes of one command.
    processes_max: String,
    next: Cell<u64>,
    spare: RefCell<Option<Group>>,
    /// Groups of finished commands that still had processes when looked at last.
    lingering: RefCell<Vec<String>>,
}

/// One command's group.
#[derive(Debug)]
struct Group {
    name: String,
    directory: OwnedFd,
    cpu_stat: OwnedFd,
    memory_peak: OwnedFd,
    memory_events: OwnedFd,
}

impl Cgroups {
    /// Turns on controllers and makes the parent group below the mounted tree `root`.
    ///
    /// # Errors
    /// What the kernel said of `root` or the parent.
    pub(crate) fn new(root: &Path) -> io::Result<Rc<Self>> {
        let parent = root.join("exec");
        fs::create_dir_all(&parent)?;
        for directory in [root, &parent] {
            fs::write(directory.join("cgroup.subtree_control"), CONTROLLERS)?;
        }
        Ok(Rc::new(Self {
            parent,
            processes_max: processes_max()?.to_string(),
            next: Cell::new(1),
            spare: RefCell::default(),
            lingering: RefCell::default(),
        }))
    }

    /// A group for a command.
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn take(self: &Rc<Self>) -> Result<Cgroup, Errno> {
        let spare = self.spare.take();
        let group = spare.map_or_else(|| self.make(), Ok)?;
        Ok(Cgroup { group: Some(group), home: Rc::clone(self) })
    }

    /// Makes the next command's group now, and removes groups that have become empty.
    pub(crate) fn tidy(&self) {
        self.lingering.borrow_mut().retain(|name| !remove(&self.parent.join(name)));
        let mut spare = self.spare.borrow_mut();
        if spare.is_none() {
            // Without a spare the next command makes its own, and reports the failure.
            *spare = self.make().ok();
        }
    }

    /// Whether groups wait to become empty.
    pub(crate) fn has_lingering(&self) -> bool {
        !self.lingering.borrow().is_empty()
    }

    fn make(&self) -> Result<Group, Errno> {
        let number = self.next.replace(self.next.get() + 1);
        let name = number.to_string();
        let path = self.parent.join(&name);
        mkdir(&path, Mode::from_bits_truncate(0o755))?;
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC;
        let directory = open(&path, flags | OFlag::O_DIRECTORY, Mode::empty())?;
        let file = |name| openat(&directory, name, flags, Mode::empty());
        set(&directory, "pids.max", &self.processes_max)?;
        Ok(Group {
            cpu_stat: file("cpu.stat")?,
            memory_peak: file("memory.peak")?,
            memory_events: file("memory.events")?,
            directory,
            name,
        })
    }
}

/// Half of what the kernel has room for. It has room for as many as fill an eighth of the memory with
/// kernel stacks alone (`kernel/fork.c`); half of that many, small as they may be, leave memory for
/// everybody else.
fn processes_max() -> io::Result<u64> {
    let all = fs::read_to_string("/proc/sys/kernel/threads-max")?;
    let all: u64 = all.trim().parse().map_err(io::Error::other)?;
    Ok(all / 2)
}

/// Removes a group with the groups a command made below it; false while a process is in one.
fn remove(path: &Path) -> bool {
    match fs::remove_dir(path) {
        Ok(()) => return true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    let Ok(entries) = fs::read_dir(path) else { return false };
    for entry in entries.flatten() {
        // Its files are the kernel's, and go with the directory.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(path).is_ok()
}

/// A command's group; dropping it leaves its processes alive and removes it once they have ended.
#[derive(Debug)]
pub(crate) struct Cgroup {
    group: Option<Group>,
    home: Rc<Cgroups>,
}

/// What a group tells of the processes that were in it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Account {
    pub usage: Usage,
    /// The kernel killed a process for want of memory.
    pub out_of_memory: bool,
}

impl Cgroup {
    /// The group's directory, for a process to be born in.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.group().directory.as_fd()
    }

    /// Holds all processes in it together to `limits`.
    ///
    /// # Errors
    /// The file of the limit that was refused, and what the kernel said.
    pub(crate) fn limit(&self, limits: &ExecLimits) -> Result<(), (&'static str, Errno)> {
        let set = |file, value: Option<String>| match value {
            Some(value) => set(self.directory(), file, &value).map_err(|errno| (file, errno)),
            None => Ok(()),
        };
        set("memory.max", limits.memory_bytes.map(|bytes| bytes.to_string()))?;
        set(
            "cpu.max",
            limits.cpu_thousandths.map(|share| {
                let quota_us = u64::from(share) * CPU_PERIOD_US / 1000;
                format!("{quota_us} {CPU_PERIOD_US}")
            }),
        )?;
        set("pids.max", limits.processes.map(|processes| processes.to_string()))
    }

    /// Kills every process in it, those it is just starting too (Linux 5.14).
    ///
    /// # Errors
    /// What the kernel said.
    pub(crate) fn kill(&self) -> Result<(), Errno> {
        set(self.directory(), "cgroup.kill", "1")
    }

    /// What its processes have used so far.
    pub(crate) fn account(&self) -> Account {
        let group = self.group();
        let mut text = [0; 1024];
        let cpu = contents(&group.cpu_stat, &mut text);
        let (user_us, system_us) = (value(cpu, "user_usec "), value(cpu, "system_usec "));
        let peak_memory_bytes = value(contents(&group.memory_peak, &mut text), "");
        let killed = value(contents(&group.memory_events, &mut text), "oom_kill ");
        Account {
            usage: Usage { user_us, system_us, peak_memory_bytes },
            out_of_memory: killed > 0,
        }
    }

    fn group(&self) -> &Group {
        self.group.as_ref().expect("taken by drop alone")
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Some(group) = self.group.take() {
            self.home.lingering.borrow_mut().push(group.name);
        }
    }
}

/// Writes a file of the group in `directory`.
fn set(directory: impl AsFd, file: &str, value: &str) -> Result<(), Errno> {
    let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(directory, file, flags, Mode::empty())?;
    write(&file, value.as_bytes()).map(drop)
}

/// The beginning of a file, empty if it cannot be read.
fn contents<'a>(file: &OwnedFd, text: &'a mut [u8]) -> &'a str {
    let len = read(file, text).unwrap_or(0);
    text.get(..len).and_then(|text| str::from_utf8(text).ok()).unwrap_or_default()
}

/// The number after `key` in a flat keyed file, or all of a file with one value (empty key).
fn value(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    line.and_then(|line| line.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_key() {
        let events = "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 7\n";
        for (text, key, expect) in [
            (events, "oom_kill ", 1),
            (events, "max ", 3),
            (events, "none ", 0),
            ("4096\n", "", 4096),
            ("max\n", "", 0),
            ("", "", 0),
        ] {
            assert_eq!(value(text, key), expect, "{key:?}");
        }
    }
}
