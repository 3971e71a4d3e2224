//! From launch to a guest that takes commands.

use std::{
    fs::File,
    io::{self, Read},
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use microsandbox_protocol::{
    BootFailed, Bootstrap, Disk, ExecExited, ExitStatus, Frame, Hello, Kind, Message, Ready, Root,
    Timestamp, Upper, negotiate,
};
use tokio::{
    net::{UnixStream, unix::OwnedReadHalf},
    process::Child,
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::console::{BoundedLog, Tail, follow};
use crate::{
    BootStep, EndReason, LaunchConfig, Program, SandboxDir,
    link::{FrameReader, FrameSender},
    record::BootTimes,
    self_test::self_test,
    step,
    vmm::{DiskFormat, DiskSpec, VmFds, VmSpec, process, qemu::qmp::Qmp},
};

/// A started VM and the channels into it.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) child: Child,
    pub(super) port: FrameReader<OwnedReadHalf>,
    pub(super) agent: FrameSender,
    /// The VMM's monitor, where the driver has one.
    pub(super) qmp: Option<Qmp>,
    /// The guest's console.
    pub(super) console: Tail,
    /// What the VMM itself says.
    pub(super) vmm_words: Tail,
    /// Ends once the console was read to its end.
    pub(super) console_read: oneshot::Receiver<()>,
}

/// A boot that did not come to its end.
pub(super) type Failed = EndReason;

fn failed(step: BootStep) -> impl Fn(String) -> Failed {
    move |detail| EndReason::BootFailed { step, detail }
}

/// Starts the VMM process.
pub(super) fn start_machine(config: &LaunchConfig) -> Result<Machine, Failed> {
    let start = || -> io::Result<Machine> {
        let dir = SandboxDir::new(&config.dir);
        let driver = config.vmm.driver();
        let (ours, theirs) = StdUnixStream::pair()?;
        let (console, vm_console) = driver.open_console()?;
        let log = BoundedLog::open(dir.kernel_log_path())?;
        let (console, console_read) = follow(console, Some(log))?;
        let (words, said) = io::pipe()?;
        let (vmm_words, _) = follow(OwnedFd::from(words), None)?;
        let program = Program::at("/proc/self/exe");
        let (monitor, vm_monitor) = StdUnixStream::pair()?;
        let fds = VmFds { agent: theirs.into(), console: vm_console, monitor: vm_monitor.into() };
        let spec = vm_spec(config, &dir);
        let spawn = process::spawn(&program, &config.name, (&config.vmm, &spec), &fds, said.into());
        let child = spawn?;
        ours.set_nonblocking(true)?;
        let (input, output) = UnixStream::from_std(ours)?.into_split();
        Ok(Machine {
            child,
            port: FrameReader::new(input, "agent"),
            agent: FrameSender::start(output),
            qmp: driver.has_monitor().then(|| Qmp::open(monitor.into())).transpose()?,
            console,
            vmm_words,
            console_read,
        })
    };
    start().map_err(|error| failed(BootStep::Vmm)(error.to_string()))
}

fn vm_spec(config: &LaunchConfig, dir: &SandboxDir) -> VmSpec {
    let disk =
        |id: &str, path, format, read_only| DiskSpec { id: id.into(), path, format, read_only };
    VmSpec {
        vcpus: config.vcpus,
        memory_mib: config.memory_mib,
        kernel: config.guest.kernel.clone(),
        initramfs: config.guest.initramfs.clone(),
        disks: vec![
            disk("lower", config.lower.clone(), DiskFormat::Vmdk, true),
            disk("upper", dir.upper_path(), DiskFormat::Raw, false),
        ],
    }
}

/// Brings the guest from power-on to a first finished command. Fills in `times`.
pub(super) async fn bring_up(
    machine: &mut Machine,
    config: &LaunchConfig,
    times: &mut BootTimes,
) -> Result<Ready, Failed> {
    let deadline = Instant::now() + config.boot_timeout;
    let hello = machine.receive(BootStep::Kernel, deadline).await?;
    let hello = Hello::from_frame(&hello).and_then(|theirs| negotiate(Hello::OURS, theirs));
    hello.map_err(|error| failed(BootStep::Kernel)(error.to_string()))?;
    times.hello_us = elapsed_us(config);
    step::reached("supervisor.hello");
    let bootstrap =
        bootstrap(config).map_err(|error| failed(BootStep::Kernel)(error.to_string()))?;
    machine.agent.send(Hello::OURS.to_frame());
    machine.agent.send(bootstrap.to_frame(0));
    // Behind it at once: the agent keeps it until it is ready, which saves a round trip.
    machine.agent.send(self_test().to_frame(SELF_TEST_STREAM));
    let ready = machine.ready(deadline).await?;
    times.agent_ready_us = elapsed_us(config);
    machine.pass_self_test(deadline).await?;
    times.ready_us = elapsed_us(config);
    Ok(ready)
}

impl Machine {
    /// The guest's next frame, or why there will be none.
    async fn receive(&mut self, step: BootStep, deadline: Instant) -> Result<Frame, Failed> {
        match timeout_at(deadline, self.port.next()).await {
            Ok(Ok(Some(frame))) => Ok(frame),
            Ok(Ok(None)) => Err(failed(step)(self.explain_end().await)),
            Ok(Err(error)) => Err(failed(step)(error.to_string())),
            Err(_) => {
                let said = self.console.last_line();
                let said =
                    said.map_or_else(String::new, |line| format!("; its console says: {line}"));
                Err(failed(step)(format!("no answer from the guest in time{said}")))
            }
        }
    }

    async fn ready(&mut self, deadline: Instant) -> Result<Ready, Failed> {
        let frame = self.receive(BootStep::Guest(0.into()), deadline).await?;
        if let Ok(guest) = BootFailed::from_frame(&frame) {
            let why = io::Error::from_raw_os_error(guest.errno);
            let step = BootStep::Guest(guest.stage);
            return Err(failed(step)(format!("{}: {why}", guest.object)));
        }
        Ready::from_frame(&frame)
            .map_err(|error| failed(BootStep::Guest(0.into()))(error.to_string()))
    }

    /// Waits for the end of the first command.
    async fn pass_self_test(&mut self, deadline: Instant) -> Result<(), Failed> {
        loop {
            let frame = self.receive(BootStep::SelfTest, deadline).await?;
            match Kind::from_byte(frame.kind) {
                Some(Kind::ExecExited) => {
                    let exited = ExecExited::from_frame(&frame);
                    let status = exited.map(|exited| exited.status);
                    if status == Ok(ExitStatus::Code(0)) {
                        return Ok(());
                    }
                    return Err(failed(BootStep::SelfTest)(format!("it ended with {status:?}")));
                }
                Some(Kind::ExecFailed) => {
                    let why = microsandbox_protocol::ExecFailed::from_frame(&frame);
                    return Err(failed(BootStep::SelfTest)(format!("it did not start: {why:?}")));
                }
                _ => {}
            }
        }
    }

    /// Why the VMM went away: a panic on the console, or its own last words.
    async fn explain_end(&mut self) -> String {
        let status = timeout(EXIT_GRACE, self.child.wait()).await;
        let _read_or_late = timeout(EXIT_GRACE, &mut self.console_read).await;
        if let Some(line) = self.console.line_with(PANIC) {
            return format!("the guest kernel panicked: {line}");
        }
        let said = self.vmm_words.last_line().or_else(|| self.console.last_line());
        let said = said.unwrap_or_else(|| "it said nothing".into());
        match status {
            Ok(Ok(status)) => format!("the VMM ended with {status}: {said}"),
            _ => format!("the VMM closed its port: {said}"),
        }
    }
}

/// What a dying Linux kernel prints (`kernel/panic.c`).
pub(super) const PANIC: &str = "Kernel panic - not syncing";

/// Streams below the clients' ranges are the supervisor's own.
const SELF_TEST_STREAM: u32 = 1;

/// Time for a VMM whose port has closed to be gone.
const EXIT_GRACE: Duration = Duration::from_secs(1);

fn bootstrap(config: &LaunchConfig) -> io::Result<Bootstrap> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut entropy = vec![0; ENTROPY_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut entropy)?;
    Ok(Bootstrap {
        wall_clock: Timestamp {
            seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: now.subsec_nanos(),
        },
        entropy,
        hostname: config.hostname.clone(),
        root: Root { lower: Disk(0), upper: Upper::Disk(Disk(1)) },
        defaults: config.defaults.clone(),
    })
}

/// Twice the 256 bits that the guest kernel's generator holds (`drivers/char/random.c`).
const ENTROPY_BYTES: usize = 64;

/// Microseconds since the launch was asked for.
pub(super) fn elapsed_us(config: &LaunchConfig) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or(u64::MAX).saturating_sub(config.asked_at_us)
}
