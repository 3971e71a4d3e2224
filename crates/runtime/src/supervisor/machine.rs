//! A started VM, with the supervisor's ends of its channels: the guest's port and console, the VMM's
//! monitor, the memory.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    sync::Arc,
    time::{Duration, SystemTime},
};

use microsandbox_protocol::{
    BootFailed, Credit, ExecExited, ExecFailed, ExecFailure, ExitStatus, Frame, Hello, Kind,
    Message, Ping, Pong, Ready, negotiate,
};
use tokio::{
    io::AsyncReadExt,
    net::{UnixStream, unix::OwnedReadHalf},
    process::Child,
    sync::{
        broadcast::{self, error::RecvError},
        oneshot,
    },
    task::spawn_blocking,
    time::{Instant, timeout, timeout_at},
};

use super::{
    clock::ClockWatch,
    console::{BoundedLog, Tail, follow},
};
use crate::{
    Applied, BootStep, EndReason, Program, VmmExit, VmmKind,
    checkpoint::Checkpoint,
    error::explained,
    link::{FrameReader, FrameSender},
    vmm::{
        VmFds, new_memory,
        process::{self, Vm},
        qemu::qmp::{Qmp, QmpEvent},
    },
};

/// A started VM and the channels into it.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) child: Child,
    /// What it is confined with.
    pub(crate) confined: Applied,
    pub(crate) port: FrameReader<OwnedReadHalf>,
    pub(crate) agent: FrameSender,
    /// Which VMM.
    pub(crate) vmm: VmmKind,
    /// The VMM's monitor, where the driver has one.
    pub(crate) qmp: Option<Qmp>,
    /// What it has told there.
    events: Option<broadcast::Receiver<QmpEvent>>,
    /// The guest's memory, where the driver can save and restore it.
    pub(crate) memory: Arc<File>,
    /// Watched from before the guest is told the time.
    pub(crate) clock: ClockWatch,
    /// The guest's console.
    pub(crate) console: Tail,
    /// What the VMM itself says.
    pub(crate) vmm_words: Tail,
    /// Ends once the console was read to its end.
    pub(crate) console_read: oneshot::Receiver<()>,
    /// Completes when the VMM process has become the VMM's program.
    vmm_runs: oneshot::Receiver<SystemTime>,
}

/// A boot that did not come to its end.
pub(crate) type Failed = EndReason;

pub(crate) fn failed(step: BootStep) -> impl Fn(String) -> Failed {
    move |detail| EndReason::BootFailed { step, detail, errno: None }
}

/// As [`failed`], where a kernel said why.
pub(crate) fn refused(step: BootStep, detail: String, why: &io::Error) -> Failed {
    EndReason::BootFailed { step, detail, errno: why.raw_os_error() }
}

impl Machine {
    /// Starts the VMM process; `label` is what `ps` shows. The console goes to `log` as well.
    pub(crate) fn start(label: &str, vm: Vm<'_>, log: Option<BoundedLog>) -> io::Result<Self> {
        let driver = vm.vmm.driver();
        let (ours, theirs) = StdUnixStream::pair()?;
        let (console, vm_console) = driver.open_console()?;
        let (monitor, vm_monitor) = StdUnixStream::pair()?;
        let memory = new_memory(u64::from(vm.spec.memory_mib) << 20)?;
        let fds = VmFds {
            agent: theirs.into(),
            console: vm_console,
            monitor: vm_monitor.into(),
            memory: memory.try_clone()?.into(),
            devices: vm.sockets.try_clone()?,
        };
        let (console, console_read) = follow(console, log)?;
        let (words, said) = io::pipe()?;
        let (vmm_words, _) = follow(OwnedFd::from(words), None)?;
        let program = Program::at("/proc/self/exe");
        let process::Spawned { child, applied: confined, becoming } =
            process::spawn(&program, label, vm, &fds, said.into())?;
        ours.set_nonblocking(true)?;
        let (input, output) = UnixStream::from_std(ours)?.into_split();
        let qmp = driver.has_monitor().then(|| Qmp::open(monitor.into())).transpose()?;
        Ok(Self {
            child,
            confined,
            port: FrameReader::new(input, "agent"),
            agent: FrameSender::start(output),
            vmm: vm.vmm.kind,
            events: qmp.as_ref().map(Qmp::events),
            qmp,
            memory: Arc::new(memory),
            clock: ClockWatch::new()?,
            console,
            vmm_words,
            console_read,
            vmm_runs: watch_exec(becoming)?,
        })
    }

    /// When the VMM process became the VMM's program, if it has by now.
    pub(crate) fn vmm_runs_since(&mut self) -> Option<SystemTime> {
        self.vmm_runs.try_recv().ok()
    }

    /// Why a VMM with a monitor says that it ends, once it has ended: a `ShutdownCause` of QEMU's
    /// `qapi/run-state.json`.
    async fn shutdown_cause(&mut self) -> Option<String> {
        let mut events = self.events.take()?;
        let mut cause = None;
        loop {
            match timeout(EXIT_GRACE, events.recv()).await {
                Ok(Ok(event)) if event.name == "SHUTDOWN" => {
                    cause = event.data["reason"].as_str().map(str::to_owned);
                }
                Ok(Ok(_) | Err(RecvError::Lagged(_))) => {}
                Ok(Err(RecvError::Closed)) | Err(_) => return cause,
            }
        }
    }

    /// Waits for the agent of a machine that boots.
    pub(crate) async fn hello(&mut self, deadline: Instant) -> Result<(), Failed> {
        let hello = self.receive(BootStep::Kernel, deadline).await?;
        let agreed = Hello::from_frame(&hello).and_then(|theirs| negotiate(Hello::OURS, theirs));
        agreed.map(drop).map_err(|error| failed(BootStep::Kernel)(error.to_string()))
    }

    /// Has the agent of a machine that was restored say that it is there.
    pub(crate) async fn ping(&mut self, deadline: Instant) -> Result<(), Failed> {
        self.agent.send(Ping { token: 1 }.to_frame(0));
        let answer = self.receive(BootStep::Restore, deadline).await?;
        let pong = Pong::from_frame(&answer);
        pong.map(drop).map_err(|error| failed(BootStep::Restore)(error.to_string()))
    }

    /// Has a machine that was started to wait for it go on from `checkpoint`.
    ///
    /// Memory is read while the VMM still prepares itself: the two are independent until the machine
    /// goes on, which it does only when all of it was checked.
    pub(crate) async fn restore(
        &mut self,
        checkpoint: &Arc<Checkpoint>,
        deadline: Instant,
    ) -> Result<(), Failed> {
        let restored = timeout_at(deadline, self.go_on_from(checkpoint)).await;
        let problem = match restored {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(problem)) => problem,
            Err(_) => "it took too long".into(),
        };
        // A VMM that gave up has said why.
        let said = timeout(EXIT_GRACE, self.child.wait()).await.is_ok();
        let said = if said { self.vmm_words.last_line() } else { None };
        let said = said.map_or_else(String::new, |line| format!("; the VMM says: {line}"));
        Err(failed(BootStep::Restore)(problem + &said))
    }

    async fn go_on_from(&self, checkpoint: &Arc<Checkpoint>) -> Result<(), String> {
        let Some(qmp) = &self.qmp else { return Err("this VMM can restore nothing".into()) };
        let (from, into) = (Arc::clone(checkpoint), Arc::clone(&self.memory));
        let read = spawn_blocking(move || from.fill(&into).and_then(|()| from.devices()));
        let devices = read.await.map_err(|error| error.to_string())?;
        let devices = devices.map_err(|error| explained(&error))?;
        let restored = async {
            qmp.load_devices(&devices).await?;
            qmp.resume().await
        };
        restored.await.map_err(|error| error.to_string())
    }

    /// Kills the VMM and waits for its end, so that nothing holds the disks any more.
    pub(crate) async fn kill(mut self) {
        // Fails only when it is gone already.
        let _gone = self.child.start_kill();
        if timeout(EXIT_GRACE, self.child.wait()).await.is_err() {
            tracing::warn!("the VMM takes long to die");
        }
    }

    /// The guest's next frame, or why there will be none.
    pub(crate) async fn receive(
        &mut self,
        step: BootStep,
        deadline: Instant,
    ) -> Result<Frame, Failed> {
        match timeout_at(deadline, self.port.next()).await {
            Ok(Ok(Some(frame))) => Ok(frame),
            Ok(Ok(None)) => Err(match self.why_gone().await {
                Some(why) if why != EndReason::GuestReset => why,
                _ => {
                    let said = self.console.last_line();
                    let said = said.unwrap_or_else(|| "it said nothing".into());
                    failed(step)(format!("the guest ended itself: {said}"))
                }
            }),
            Ok(Err(error)) => Err(failed(step)(error.to_string())),
            Err(_) => {
                let said = self.console.last_line();
                let said =
                    said.map_or_else(String::new, |line| format!("; its console says: {line}"));
                Err(failed(step)(format!("no answer from the guest in time{said}")))
            }
        }
    }

    pub(crate) async fn ready(&mut self, deadline: Instant) -> Result<Ready, Failed> {
        let frame = self.receive(BootStep::Guest(0.into()), deadline).await?;
        if let Ok(guest) = BootFailed::from_frame(&frame) {
            let why = io::Error::from_raw_os_error(guest.errno);
            let step = BootStep::Guest(guest.stage);
            return Err(refused(step, format!("{}: {why}", guest.object), &why));
        }
        Ready::from_frame(&frame)
            .map_err(|error| failed(BootStep::Guest(0.into()))(error.to_string()))
    }

    /// Waits for the end of the first command.
    pub(crate) async fn pass_self_test(&mut self, deadline: Instant) -> Result<(), Failed> {
        let step = BootStep::SelfTest;
        match self.outcome(step, deadline).await? {
            (Ok(ExitStatus::Code(0)), _) => Ok(()),
            (Ok(status), _) => Err(failed(step)(format!("it ended with {status:?}"))),
            (Err(why), _) => Err(failed(step)(format!("it did not start: {why:?}"))),
        }
    }

    /// Waits for the end of [`CLONE_HOOK`](crate::CLONE_HOOK). Most images have none.
    pub(crate) async fn pass_clone_hook(&mut self, deadline: Instant) -> Result<(), Failed> {
        let step = BootStep::CloneHook;
        match self.outcome(step, deadline).await? {
            (Ok(ExitStatus::Code(0)), _) => Ok(()),
            (Err(why), _) if why.failure == ExecFailure::NotFound => Ok(()),
            (Ok(status), said) => Err(failed(step)(format!("it ended with {status:?}: {said}"))),
            (Err(why), _) => Err(failed(step)(format!("it did not start: {why:?}"))),
        }
    }

    /// How the only command there is ends, and the last that it says.
    async fn outcome(
        &mut self,
        step: BootStep,
        deadline: Instant,
    ) -> Result<(Result<ExitStatus, ExecFailed>, String), Failed> {
        let unreadable = |error: microsandbox_protocol::Error| failed(step)(error.to_string());
        let mut said = String::new();
        loop {
            let frame = self.receive(step, deadline).await?;
            match Kind::from_byte(frame.kind) {
                Some(Kind::ExecExited) => {
                    let exited = ExecExited::from_frame(&frame).map_err(unreadable)?;
                    return Ok((Ok(exited.status), said));
                }
                Some(Kind::ExecFailed) => {
                    return Ok((Err(ExecFailed::from_frame(&frame).map_err(unreadable)?), said));
                }
                Some(Kind::Stdout | Kind::Stderr) => {
                    if let Some(line) = String::from_utf8_lossy(&frame.body).lines().last() {
                        line.trim().clone_into(&mut said);
                    }
                    let bytes = u32::try_from(frame.body.len()).unwrap_or(u32::MAX);
                    self.agent.send(Credit { bytes }.to_frame(frame.stream));
                }
                _ => {}
            }
        }
    }

    /// Why the machine went away without a word of the agent; `None` when the guest ended it.
    pub(crate) async fn why_gone(&mut self) -> Option<EndReason> {
        let status = timeout(EXIT_GRACE, self.child.wait()).await;
        let _read_or_late = timeout(EXIT_GRACE, &mut self.console_read).await;
        if let Some(line) = self.console.line_with(PANIC) {
            return Some(EndReason::of_panic(line));
        }
        match status {
            Ok(Ok(status)) if status.success() => match self.shutdown_cause().await.as_deref() {
                Some("guest-reset") => Some(EndReason::GuestReset),
                Some(cause @ ("host-signal" | "host-error")) => {
                    Some(EndReason::VmmFailed { code: 0, detail: format!("it ended by {cause}") })
                }
                _ => None,
            },
            Ok(Ok(status)) => Some(match VmmExit::of(status) {
                VmmExit::Signal(signal) => EndReason::VmmCrashed { signal },
                VmmExit::Code(code) => {
                    let detail = self.vmm_words.last_line();
                    let detail = detail.unwrap_or_else(|| "it said nothing".into());
                    EndReason::VmmFailed { code, detail }
                }
            }),
            _ => {
                let detail = "the VMM closed its port and lives on".into();
                Some(EndReason::AgentLost { detail })
            }
        }
    }
}

/// The VMM process holds the far end of the socket that brought its orders until it executes another
/// program.
fn watch_exec(becoming: StdUnixStream) -> io::Result<oneshot::Receiver<SystemTime>> {
    becoming.set_nonblocking(true)?;
    let mut becoming = UnixStream::from_std(becoming)?;
    let (done, runs) = oneshot::channel();
    tokio::spawn(async move {
        // It says nothing: what comes is the end.
        let _end = becoming.read(&mut [0]).await;
        let _nobody_waits = done.send(SystemTime::now());
    });
    Ok(runs)
}

/// What a dying Linux kernel prints (`kernel/panic.c`).
const PANIC: &str = "Kernel panic - not syncing";

/// Time for a VMM whose port has closed to be gone, and for the console to be read to its end.
const EXIT_GRACE: Duration = Duration::from_secs(5);
