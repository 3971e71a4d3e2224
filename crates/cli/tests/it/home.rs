//! A fresh home, `msb` in it, and what is left in it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{fs::symlink, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use microsandbox::env;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use tempfile::TempDir;

/// Folder with `vmlinux` and `initramfs.cpio`.
const MSB_TEST_GUEST: &str = "MSB_TEST_GUEST";

/// Folder with OCI layouts.
const MSB_TEST_IMAGES: &str = "MSB_TEST_IMAGES";

/// Longest wait for anything. A loaded machine that emulates several guests is slow, not dead.
pub(crate) const DEADLINE: Duration = Duration::from_secs(180);

/// Longest time from the word that a sandbox has ended to the end of its processes.
const GRACE: Duration = Duration::from_secs(10);

/// What a test needs and `cargo xtask test` prepares.
fn prepared(name: &str) -> PathBuf {
    let value = env::read(name);
    PathBuf::from(value.unwrap_or_else(|| panic!("{name} is not set: run `cargo xtask test`")))
}

/// The folder of the guest that homes have.
pub(crate) fn guest() -> PathBuf {
    prepared(MSB_TEST_GUEST)
}

/// The OCI layout of a test image.
pub(crate) fn layout(name: &str) -> PathBuf {
    prepared(MSB_TEST_IMAGES).join(name)
}

/// An `MSB_HOME` of its own.
#[derive(Debug)]
pub(crate) struct Home {
    dir: TempDir,
}

impl Home {
    /// A home with nothing in it.
    pub(crate) fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// A home with a guest to boot and no image.
    pub(crate) fn with_guest() -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir_all(home.path().join("guest")).unwrap();
        symlink(prepared(MSB_TEST_GUEST), home.path().join("guest/test")).unwrap();
        fs::write(home.path().join("guest/current"), "test").unwrap();
        home
    }

    /// A home with a guest and the image `busybox`.
    pub(crate) fn with_busybox() -> Self {
        let home = Self::with_guest();
        let layout = layout("busybox");
        let loaded = home.run(&["load", "-q", "-i", layout.to_str().unwrap(), "-t", "busybox"]);
        assert_eq!((loaded.code, loaded.stderr.as_str()), (0, ""));
        home
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `msb` in this home, with no other settings.
    pub(crate) fn msb(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_msb"));
        command.args(arguments).env(env::MSB_HOME, self.path());
        // A template built in the background would take processor time from the tests.
        command.env(env::MSB_BOOT, "cold");
        let registries =
            [env::MSB_OFFLINE, env::MSB_MIRRORS, env::MSB_INSECURE_REGISTRIES, env::MSB_CA_CERTS];
        let own = [env::MSB_PATH, env::MSB_VMM, env::MSB_KERNEL, env::MSB_LOG];
        for setting in own.into_iter().chain(registries) {
            command.env_remove(setting);
        }
        command
    }

    /// Runs `msb` to its end, without input.
    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.end(self.msb(arguments).stdin(Stdio::null()))
    }

    /// Runs a command made by [`Self::msb`] to its end.
    pub(crate) fn end(&self, command: &mut Command) -> Ran {
        let ran = Running::start(command).end();
        let home = self.path().to_str().unwrap();
        Ran { stderr: ran.stderr.replace(home, "[HOME]"), ..ran }
    }

    /// Starts `msb` with a pipe as its input.
    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.msb(arguments).stdin(Stdio::piped()))
    }

    /// Runs `msb` and compares all that it said. `[HOME]` stands for the home.
    #[track_caller]
    pub(crate) fn check(&self, arguments: &[&str], code: i32, stdout: &str, stderr: &str) {
        let ran = self.run(arguments);
        let seen = (ran.code, ran.stdout.as_str(), ran.stderr.as_str());
        assert_eq!(seen, (code, stdout, stderr), "msb {}", arguments.join(" "));
    }

    /// What sandboxes have left: directories, rows of the catalogue that show, processes.
    pub(crate) fn residue(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path().join("sandboxes")).into_iter().flatten();
        let entries = entries.map(|entry| entry.unwrap().path().display().to_string());
        let listed = self.run(&["ls", "-q"]).stdout;
        let rows = listed.lines().map(|name| format!("row of {name}"));
        // A supervisor tells of the end and then ends itself.
        let processes = self.processes().into_iter().filter(|pid| !ends(*pid, GRACE));
        let processes = processes.map(|pid| format!("process {pid:?}"));
        entries.chain(rows).chain(processes).collect()
    }

    /// Processes that hold a file of this home open: every supervisor and VMM does.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let holds_ours = |fds: PathBuf| {
            let links = fs::read_dir(fds).into_iter().flatten().flatten();
            links.flat_map(|link| fs::read_link(link.path())).any(|to| to.starts_with(self.path()))
        };
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        // This process looks into homes, those of other tests included.
        let others = pids.filter(|pid| i64::from(*pid) != i64::from(std::process::id()));
        others
            .filter(|pid| holds_ours(PathBuf::from(format!("/proc/{pid}/fd"))))
            .filter_map(Pid::from_raw)
            .collect()
    }
}

impl Drop for Home {
    /// Ends what still runs: a sandbox that lives on outlives its test, too.
    fn drop(&mut self) {
        for process in self.processes() {
            // Fails only when it has ended.
            let _ended = kill_process(process, Signal::KILL);
            let _in_time = ends(process, DEADLINE);
        }
    }
}

/// Whether a process ends within this time.
pub(crate) fn ends_within(pid: Pid, time: Duration) -> bool {
    ends(pid, time)
}

/// Waits until a process has ended.
#[track_caller]
pub(crate) fn wait_for_end(pid: Pid) {
    assert!(ends(pid, DEADLINE), "process {pid:?} does not end");
}

fn ends(pid: Pid, deadline: Duration) -> bool {
    // A process without a descriptor has ended and is gone.
    pidfd_open(pid, PidfdFlags::empty()).map_or(true, |process| is_ready(process.as_fd(), deadline))
}

pub(crate) fn is_ready(fd: BorrowedFd<'_>, deadline: Duration) -> bool {
    let deadline = Timespec::try_from(deadline).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&deadline)).unwrap() > 0
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// An `msb` that runs. One that is dropped is killed.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<JoinHandle<String>>,
}

impl Running {
    fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let stderr = thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).unwrap();
            String::from_utf8_lossy(&text).into_owned()
        });
        let stdout = child.stdout.take().map(BufReader::new);
        Self { stdin: child.stdin.take(), stdout, stderr: Some(stderr), child }
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Writes to its input and leaves that open.
    pub(crate) fn write(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next bytes of its output, as many as `expected` has.
    #[track_caller]
    pub(crate) fn expect(&mut self, expected: &str) {
        let mut seen = Vec::new();
        let stdout = self.stdout.as_mut().unwrap();
        while seen.len() < expected.len() {
            if stdout.buffer().is_empty() {
                assert!(is_ready(stdout.get_ref().as_fd(), DEADLINE), "no output: {expected:?}");
            }
            let buffer = stdout.fill_buf().unwrap();
            let len = buffer.len().min(expected.len() - seen.len());
            if len == 0 {
                break;
            }
            seen.extend_from_slice(&buffer[..len]);
            stdout.consume(len);
        }
        if seen != expected.as_bytes() {
            let seen = String::from_utf8_lossy(&seen).into_owned();
            panic!("expected {expected:?}, not {seen:?}; {:?}", self.stderr_of_failed());
        }
    }

    fn stderr_of_failed(&mut self) -> String {
        let _gone = self.child.kill();
        self.stderr.take().map(|stderr| stderr.join().unwrap()).unwrap_or_default()
    }

    /// Waits for its end and reads no more of its output.
    pub(crate) fn end_unread(mut self) -> i32 {
        self.stdout = None;
        wait_for_end(self.pid());
        code(&mut self.child)
    }

    /// Waits for its end with what it still says; its input stays as it is.
    #[track_caller]
    pub(crate) fn end(mut self) -> Ran {
        let (pid, mut stdout) = (self.pid(), Vec::new());
        let watch = thread::spawn(move || {
            let ended = ends(pid, DEADLINE);
            if !ended {
                kill_process(pid, Signal::KILL).unwrap();
            }
            ended
        });
        self.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        let stderr = self.stderr.take().unwrap().join().unwrap();
        assert!(watch.join().unwrap(), "msb does not end: {stdout:?} {stderr:?}");
        Ran { code: code(&mut self.child), stdout, stderr }
    }
}

/// The exit code a shell would show.
fn code(child: &mut Child) -> i32 {
    let status = child.wait().unwrap();
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap())
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it has ended.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
