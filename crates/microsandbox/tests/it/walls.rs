//! What the processes of a running sandbox are to the host: what they have open, what they may open, and
//! what a supervisor that has gone over to the guest could still do.
//!
//! The VMM's own attempts to get out are in the runtime's tests.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    net::{TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{EndReason, Layer, Sandbox, env};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc::{EACCES, EPERM},
    sys::signal::kill,
    unistd::{Pid, geteuid},
};

use crate::{
    directory,
    lifecycle::{eventually, pid_in_record},
    sandbox, trial,
};

/// A supervisor of a sandbox with this name tries to get out.
const PRISONER: &str = "prisoner";

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("walls::stand_around_a_running_sandbox", stand),
        trial("walls::a_vmm_has_its_own_files_open_and_no_others", open_files),
        trial("walls::that_are_left_out_are_missed", left_out),
        trial("walls::that_the_host_lacks_are_done_without_or_missed", lacking),
        trial("walls::a_supervisor_that_is_told_to_end_stops_the_guest", told_to_end),
        trial("walls::a_supervisor_cannot_get_out", supervisor),
        trial("walls::nothing_beyond_the_list_is_opened_in_a_start", trace),
    ]
}

fn pids(name: &str) -> Result<[String; 2]> {
    Ok([pid_in_record(name, "pid")?, pid_in_record(name, "vmm_pid")?])
}

async fn stand() -> Result<()> {
    let name = "walled";
    let running = sandbox(name).create().await?;
    let run = Sandbox::get(name).await?.last_run()?.context("a run")?;
    let confinement = run.confinement.context("a record of the walls")?;
    ensure!(confinement.wanted == Layer::ALL, "{confinement:?}");
    ensure!(confinement.vmm.layers == Layer::ALL, "{confinement:?}");
    ensure!(confinement.supervisor.layers == [Layer::Landlock, Layer::Seccomp], "{confinement:?}");
    let [supervisor, vmm] = pids(name)?;
    for pid in [&supervisor, &vmm] {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        for held in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapPrm:\t0000000000000000"] {
            ensure!(status.contains(held), "{held} of {status}");
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // State, parent, group, session (proc_pid_stat(5)).
        let session = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(3));
        ensure!(session == Some(pid), "a session of its own: {stat}");
    }
    for namespace in ["user", "mnt", "net", "ipc", "uts"] {
        let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}"));
        ensure!(of(&vmm)? != of("self")?, "the {namespace} namespace is shared");
    }
    ensure!(fs::read(format!("/proc/{vmm}/environ"))?.is_empty(), "an environment");
    let limits = fs::read_to_string(format!("/proc/{vmm}/limits"))?;
    let core = limits.lines().find(|line| line.starts_with("Max core file size"));
    let core: Vec<&str> = core.unwrap_or_default().split_whitespace().collect();
    ensure!(core.get(4..6) == Some(&["1", "1"]), "{limits}");
    let command_line = fs::read(format!("/proc/{supervisor}/cmdline"))?;
    ensure!(command_line == format!("msb-supervisor\0{name}\0").as_bytes(), "{command_line:?}");
    for (file, mode) in [("", 0o700), ("run.json", 0o600), ("upper.ext4", 0o600), ("lock", 0o600)] {
        let path = directory(name).join(file);
        let found = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path)?) & 0o777;
        ensure!(found == mode, "{} has mode {found:o}", path.display());
    }
    Ok(running.stop().await?)
}

/// Descriptors of a process, as links.
fn descriptors(pid: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    entries.map(|entry| Ok(fs::read_link(entry?.path())?.display().to_string())).collect()
}

async fn open_files() -> Result<()> {
    // What our own process leaves open to whatever it starts must not get through.
    let leak = File::open("/etc/hostname").or_else(|_| File::open("/etc/passwd"))?;
    fcntl(&leak, FcntlArg::F_SETFD(FdFlag::empty()))?;
    let name = "few-files";
    let running = sandbox(name).create().await?;
    let [supervisor, vmm] = pids(name)?;
    let images = PathBuf::from(env::read(env::MSB_HOME).unwrap_or_default()).join("images");
    let upper = directory(name).join("upper.ext4");
    let open = descriptors(&vmm)?;
    let files = open.iter().filter(|link| link.starts_with('/'));
    let strange: Vec<&String> = files
        .filter(|link| {
            let path = Path::new(link);
            // The guest's memory has no name that could be opened.
            let memory = link.starts_with("/memfd:msb-guest-memory");
            !memory && path != upper && !path.starts_with(&images) && path != Path::new("/dev/null")
        })
        .collect();
    ensure!(strange.is_empty(), "{strange:?} of {open:?}");
    // Agent, console and monitor; both outputs are one pipe.
    let count = |kind: &str| open.iter().filter(|link| link.starts_with(kind)).count();
    ensure!((count("socket:"), count("pipe:")) == (3, 2), "{open:?}");
    // Only root may look at those of a supervisor.
    if geteuid().is_root() {
        let open = descriptors(&supervisor)?;
        ensure!(!open.iter().any(|link| link.starts_with("/etc/")), "{open:?}");
        ensure!(open.iter().filter(|link| link.ends_with("/lock")).count() == 1, "{open:?}");
    }
    Ok(running.stop().await?)
}

/// An owner of its own, with another wish.
fn owner(name: &str, confinement: &str) -> Result<Command> {
    let mut owner = Command::new(std::env::current_exe()?);
    owner
        .env(env::MSB_CONFINEMENT, confinement)
        .env("MSB_TEST_OWNER", format!("start {name} none"));
    Ok(owner)
}

async fn left_out() -> Result<()> {
    let name = "half-walled";
    sandbox(name).create().await?.stop().await?;
    for (wish, expected) in
        [("off", &[][..]), ("seccomp", &[Layer::Seccomp]), ("required", &Layer::ALL)]
    {
        let mut owner = owner(name, wish)?.stderr(Stdio::null()).spawn()?;
        ensure!(owner.wait()?.success(), "start with {wish}");
        let handle = Sandbox::get(name).await?;
        handle.wait_until_stopped().await?;
        let confinement = handle.last_run()?.context("a run")?.confinement.context("walls")?;
        ensure!(confinement.vmm.layers == expected, "{wish}: {confinement:?}");
    }
    let refused = owner(name, "lanlock")?.output()?;
    let told = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && told.contains("MSB_CONFINEMENT"), "{told}");
    Ok(())
}

/// A host on which users make no namespaces: in one of its own, a process may set the limit to none.
async fn lacking() -> Result<()> {
    let name = "walled-lower";
    sandbox(name).create().await?.stop().await?;
    let start = |wish: &str| -> Result<std::process::Output> {
        let wished = owner(name, wish)?;
        let mut owner = Command::new("unshare");
        let limited = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$0\"";
        owner.args(["--user", "--map-root-user", "sh", "-c", limited]).arg(wished.get_program());
        owner.envs(wished.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ok(owner.output()?)
    };
    let refused = start("required")?;
    let told = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        !refused.status.success() && told.contains("confine the sandbox with namespaces"),
        "{told}"
    );
    let done = start("auto")?;
    ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let handle = Sandbox::get(name).await?;
    handle.wait_until_stopped().await?;
    let confinement = handle.last_run()?.context("a run")?.confinement.context("walls")?;
    ensure!(confinement.vmm.layers == [Layer::Landlock, Layer::Seccomp], "{confinement:?}");
    Ok(())
}

async fn told_to_end() -> Result<()> {
    let name = "terminated";
    let running = sandbox(name).create().await?;
    ensure!(running.shell("echo kept > /root/kept; sync").await?.status().success);
    let [supervisor, _] = pids(name)?;
    ensure!(Command::new("kill").arg(&supervisor).status()?.success(), "kill {supervisor}");
    let handle = Sandbox::get(name).await?;
    handle.wait_until_stopped().await?;
    let run = handle.last_run()?.context("a run")?;
    ensure!(run.end == Some(EndReason::Terminated), "{run:?}");
    let exit = fs::read_to_string(directory(name).join("exit.json"))?;
    ensure!(exit.contains("\"forced\": false"), "{exit}");
    let again = Sandbox::start(name).await?;
    ensure!(again.shell("cat /root/kept").await?.stdout()? == "kept\n");
    Ok(again.stop().await?)
}

/// What a supervisor tries: name, and the errors that are right for it.
type Try = (&'static str, fn(&Path) -> io::Result<()>, &'static [i32]);

const TRIES: &[Try] = &[
    ("read the user's home", |home| File::open(home.join("secret")).map(drop), &[EACCES]),
    ("read the catalogue", |home| File::open(home.join("db/msb.db")).map(drop), &[EACCES]),
    (
        "read another disk",
        |home| File::open(home.join("sandboxes/neighbour/upper.ext4")).map(drop),
        &[EACCES],
    ),
    ("list sandboxes", |home| fs::read_dir(home.join("sandboxes")).map(drop), &[EACCES]),
    (
        "remove another's disk",
        |home| fs::remove_file(home.join("sandboxes/neighbour/upper.ext4")),
        &[EACCES],
    ),
    ("make a file", |home| File::create(home.join("new")).map(drop), &[EACCES]),
    ("read /etc/passwd", |_| File::open("/etc/passwd").map(drop), &[EACCES]),
    ("read another's /proc", |_| File::open("/proc/1/stat").map(drop), &[EACCES]),
    ("make a TCP socket", |_| TcpStream::connect("127.0.0.1:1").map(drop), &[EPERM]),
    ("make a UDP socket", |_| UdpSocket::bind("127.0.0.1:0").map(drop), &[EPERM]),
    ("start a program", |_| Command::new("/bin/true").spawn().map(drop), &[EPERM]),
    ("start itself", |_| Command::new("/proc/self/exe").spawn().map(drop), &[EPERM]),
    ("signal another", |_| Ok(kill(Pid::from_raw(1), None)?), &[EPERM]),
];

/// In every supervisor of this program, once its guest takes commands.
pub(crate) fn try_to_get_out() {
    if std::env::args().nth(1).as_deref() != Some(PRISONER) {
        return;
    }
    // Its output goes to `<home>/sandboxes/<name>/logs/runtime.log`; a link is not opened.
    let log = fs::read_link("/proc/self/fd/2").expect("standard error is a file");
    let own = log.ancestors().nth(2).expect("the log has a directory");
    let home = own.ancestors().nth(2).expect("the sandbox has a home");
    let tried = TRIES.iter().map(|(name, attempt, _)| {
        let errno = attempt(home).map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0);
        format!("{name}={errno}\n")
    });
    fs::write(own.join("findings"), tried.collect::<String>()).expect("its directory is its own");
}

async fn supervisor() -> Result<()> {
    let neighbour = sandbox("neighbour").create().await?;
    fs::write(PathBuf::from(env::read(env::MSB_HOME).unwrap_or_default()).join("secret"), "s")?;
    let prisoner = sandbox(PRISONER).create().await?;
    let findings = fs::read_to_string(directory(PRISONER).join("findings"))?;
    ensure!(findings.lines().count() == TRIES.len(), "{findings}");
    for ((name, _, expected), line) in TRIES.iter().zip(findings.lines()) {
        let errno = line.strip_prefix(&format!("{name}=")).context("in order")?.parse()?;
        ensure!(expected.contains(&errno), "{line}, not {expected:?}");
    }
    prisoner.stop().await?;
    Ok(neighbour.stop().await?)
}

/// Paths that a process opened, in `strace`'s words: `openat(AT_FDCWD, "/path", FLAGS) = 3`.
fn opened(trace: &str) -> BTreeSet<PathBuf> {
    let opened = trace.lines().filter(|line| line.contains("open") && !line.contains(" = -1 "));
    opened.filter_map(|line| line.split('"').nth(1)).map(PathBuf::from).collect()
}

async fn trace() -> Result<()> {
    let name = "traced";
    sandbox(name).create().await?.stop().await?;
    let folder = tempfile::tempdir()?;
    let traces = folder.path().join("trace");
    let traced = Command::new("strace")
        .args(["-ff", "-qq", "-s", "4096", "-e", "trace=execve,open,openat,openat2", "-o"])
        .arg(&traces)
        .arg(std::env::current_exe()?)
        .env(env::MSB_CONFINEMENT, "required")
        .env("MSB_TEST_OWNER", format!("start {name} none"))
        .stderr(Stdio::null())
        .status()
        .context("strace is one of the tools that `cargo xtask test` installs")?;
    ensure!(traced.success(), "{traced}");
    let home = PathBuf::from(env::read(env::MSB_HOME).unwrap_or_default());
    let allowed = [
        home.join("images"),
        home.join("guest"),
        env::read("MSB_TEST_GUEST").map(PathBuf::from).unwrap_or_default(),
        directory(name).join("upper.ext4"),
        "/dev/urandom".into(),
        "/dev/null".into(),
        "/proc/self/fd/6".into(),
        "/etc/ld.so.cache".into(),
        "/lib".into(),
        "/lib64".into(),
        "/usr/lib".into(),
        "/usr/bin/../lib".into(),
        "/usr/share/qemu".into(),
        "/usr/bin/../share/qemu".into(),
    ];
    let mut vmms = 0;
    for entry in fs::read_dir(folder.path())? {
        let trace = fs::read_to_string(entry?.path())?;
        // From where it is QEMU, confined from before its first instruction.
        let Some((_, as_vmm)) = trace.split_once("\"msb-vmm\"") else { continue };
        vmms += 1;
        let strange: Vec<_> = opened(as_vmm)
            .into_iter()
            .filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed)))
            .collect();
        ensure!(strange.is_empty(), "opened beyond the list: {strange:?}");
        ensure!(as_vmm.contains("upper.ext4"), "the trace has what is opened: {as_vmm}");
    }
    ensure!(vmms > 0, "no VMM in the traces");
    eventually("the end", async || Ok(!Sandbox::get(name).await?.status().is_alive())).await
}
