//! One run of a sandbox, from orders to exit record: the task that owns its state.

use std::{
    io,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    time::Duration,
};

use chrono::Utc;
use microsandbox_protocol::{Frame, Message, Outcome, Shutdown, Stop};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    Orders,
    boot::elapsed_us,
    clock::set_guest_clock,
    confined,
    limits::Limits,
    machine::Machine,
    relay::{ClientId, GuestNews, Relay, Wish, owner},
    standstill::{Settled, Standstill},
    start::Source,
};
use crate::{
    EndReason, ExitRecord, LaunchConfig, RunRecord, SandboxDir, VmmExit,
    checkpoint::Shape,
    exec_log::ExecLog,
    link::FrameReader,
    orders::{Belongings, DETACH, Progress},
    record::BootTimes,
    step,
    template::plan::Shapes,
    vmm::DeviceSockets,
};

/// Frames of clients waiting for the owner of the state; a full queue makes clients wait.
const CLIENT_QUEUE: usize = 64;

/// Time for the VMM to be gone after it was killed, and for the console to be read to its end.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Supervises the run and writes its records.
pub(super) async fn run(orders: Orders) -> io::Result<()> {
    let Orders { config, shapes, control, belongings } = orders;
    let Belongings { lock, sockets } = belongings;
    let dir = SandboxDir::new(&config.dir);
    let mut masters = Masters::new(control)?;
    let mut record = match begin(&config, &dir) {
        Ok(record) => record,
        Err(error) => {
            drop(lock);
            let end = exit_record(&config, EndReason::of_preparation(&error), String::new());
            masters.tell(&Progress::Failed(Box::new(end))).await;
            return Err(io::Error::other(error));
        }
    };
    step::reached("supervisor.begun");
    let (end, relay) = live(&config, (shapes, sockets), &mut record, &mut masters).await;
    tracing::info!(reason = %end.reason, forced = end.forced, "sandbox ended");
    finish(&config, &dir, &end);
    step::reached("supervisor.recorded");
    // Whoever hears of the end may take the lock at once: it must be free by then.
    drop(lock);
    step::reached("supervisor.unlocked");
    if record.ready_at.is_none() {
        masters.tell(&Progress::Failed(Box::new(end.clone()))).await;
    }
    if let Some(relay) = relay {
        relay.farewell(serde_json::to_string(&end).map_err(io::Error::other)?).await;
    }
    Ok(())
}

fn begin(config: &LaunchConfig, dir: &SandboxDir) -> crate::Result<RunRecord> {
    let boot = BootTimes { supervisor_us: elapsed_us(config), ..config.boot };
    let record = RunRecord {
        run_id: config.run_id.clone(),
        pid: std::process::id(),
        vmm_pid: None,
        vmm: config.vmm.kind,
        accel: config.vmm.accel,
        started_at: Utc::now(),
        ready_at: None,
        origin: None,
        failed_templates: Vec::new(),
        boot,
        guest: None,
        confinement: None,
        stopping: false,
        paused: false,
    };
    dir.remove_saved()?;
    dir.reserve_records()?;
    dir.remove_socket()?;
    dir.write_run_record(&record)?;
    dir.remove_exit_record()?;
    Ok(record)
}

fn finish(config: &LaunchConfig, dir: &SandboxDir, end: &ExitRecord) {
    let tidy = || {
        dir.write_exit_record(end)?;
        dir.release_reserve()?;
        dir.remove_socket()
    };
    if let Err(error) = tidy() {
        tracing::error!(%error, hint = error.hint(), "the end could not be recorded");
    }
    if config.ephemeral
        && let Err(error) = remove_ephemeral(dir, end)
    {
        tracing::error!(%error, hint = error.hint(), "the ephemeral sandbox could not be removed");
    }
}

/// Leaves the records alone for whoever still wants to know why it ended: the owner, unless it is
/// gone, or the next command, which clears them away.
fn remove_ephemeral(dir: &SandboxDir, end: &ExitRecord) -> crate::Result<()> {
    match end.reason {
        EndReason::OwnerExited => dir.remove_all(),
        _ => dir.remove_all_but_records(),
    }
}

/// Boots and serves the sandbox; gives its end, and the links that close after the lock is free.
async fn live(
    config: &LaunchConfig,
    (shapes, sockets): (Shapes, DeviceSockets),
    record: &mut RunRecord,
    masters: &mut Masters,
) -> (ExitRecord, Option<Relay>) {
    let dir = &SandboxDir::new(&config.dir);
    let saveable = shapes.machine.as_ref().ok().cloned();
    let mut source = Source::find(config, shapes, record);
    let mut slot = None;
    let booted = tokio::select! {
        booted = source.boot(config, &sockets, record, &mut slot) => booted,
        reason = masters.want_end() => Err(reason),
    };
    // The VMM has its own: whoever is at the other end hears when that is gone.
    drop(sockets);
    let (mut machine, ready) = match (slot, booted) {
        (Some(machine), Ok(ready)) => (machine, ready),
        (Some(mut machine), Err(reason)) => {
            return (machine.end(config, reason, false).await, None);
        }
        (None, Err(reason)) => return (exit_record(config, reason, String::new()), None),
        (None, Ok(_)) => unreachable!("a machine that booted is in its slot"),
    };
    let mut session = match Session::open(config, dir, &machine, ready.clone(), saveable) {
        Ok(session) => session,
        Err(error) => {
            let reason = EndReason::AgentLost { detail: format!("open the relay: {error}") };
            return (machine.end(config, reason, false).await, None);
        }
    };
    if let Err(error) = confined::start_nothing_more(config) {
        let reason = EndReason::AgentLost { detail: format!("confine the supervisor: {error}") };
        return (machine.end(config, reason, false).await, None);
    }
    record.ready_at = Some(Utc::now());
    record.guest = Some(ready);
    if let Err(error) = dir.write_run_record(record) {
        tracing::error!(%error, "run record");
    }
    step::reached("supervisor.ready");
    masters.tell(&Progress::Ready(Box::new(record.clone()))).await;
    let (reason, forced) = session.serve(&mut machine, record, masters).await;
    let end = machine.end(config, reason, forced).await;
    session.relay.close_log().await;
    (end, Some(session.relay))
}

/// Everything that is there only while the guest takes commands.
#[derive(Debug)]
struct Session<'a> {
    config: &'a LaunchConfig,
    dir: &'a SandboxDir,
    relay: Relay,
    listener: UnixListener,
    from_clients: mpsc::Receiver<(ClientId, Option<Frame>)>,
    to_session: mpsc::Sender<(ClientId, Option<Frame>)>,
    limits: Limits,
    /// The guest has been asked whether detached jobs run, and has not answered.
    asked_if_idle: bool,
    standstill: Standstill,
    stopping: Option<Stopping>,
}

/// An orderly end under way.
#[derive(Debug)]
struct Stopping {
    reason: EndReason,
    deadline: Instant,
}

impl<'a> Session<'a> {
    fn open(
        config: &'a LaunchConfig,
        dir: &'a SandboxDir,
        machine: &Machine,
        ready: microsandbox_protocol::Ready,
        shape: Option<Shape>,
    ) -> io::Result<Self> {
        let (_held_open, path) = dir.short_socket_path()?;
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600))?;
        let (to_session, from_clients) = mpsc::channel(CLIENT_QUEUE);
        let log = ExecLog::start(dir.logs_path()).inspect_err(|error| {
            tracing::warn!(%error, "no log of commands");
        });
        let relay = Relay::new(machine.agent.clone(), ready, log.ok());
        let limits = Limits::new(config.idle_timeout, config.max_duration);
        Ok(Self {
            config,
            dir,
            relay,
            listener,
            from_clients,
            to_session,
            limits,
            asked_if_idle: false,
            standstill: Standstill::new(dir.clone(), shape),
            stopping: None,
        })
    }

    /// Serves until the machine is gone or must go; says why and whether by force.
    async fn serve(
        &mut self,
        machine: &mut Machine,
        record: &mut RunRecord,
        masters: &mut Masters,
    ) -> (EndReason, bool) {
        loop {
            let counts = !self.asked_if_idle && !self.standstill.is_paused();
            self.limits.observe(self.relay.is_idle() && counts);
            let deadline = match &self.stopping {
                Some(stopping) => Some(stopping.deadline),
                None => self.limits.deadline(),
            };
            tokio::select! {
                frame = machine.port.next() => match frame {
                    Ok(Some(frame)) => match self.relay.on_guest(frame) {
                        Ok(GuestNews::None) => {}
                        Ok(GuestNews::Uses(uses)) => {
                            self.asked_if_idle = false;
                            if uses.commands == 0 && self.relay.is_idle() {
                                let reason = self.limits.idle_reason();
                                let timeout = self.config.stop_timeout;
                                self.begin_stop(reason, timeout, machine, record);
                            }
                        }
                        Ok(GuestNews::Held) => self.standstill.held(),
                        Ok(GuestNews::Stopped) => return (self.reason_for_end(), false),
                        Err(lie) => return (EndReason::AgentLost { detail: lie.0 }, true),
                    },
                    Ok(None) => {
                        let why = match machine.why_gone().await {
                            // It was on its way out.
                            Some(EndReason::GuestReset) if self.stopping.is_some() => None,
                            why => why,
                        };
                        return (why.unwrap_or_else(|| self.reason_for_end()), false);
                    }
                    Err(error) => {
                        return (EndReason::AgentLost { detail: error.to_string() }, true);
                    }
                },
                Some((client, frame)) = self.from_clients.recv() => {
                    let wish = match frame {
                        Some(frame) => self.on_client(client, frame),
                        None => {
                            self.relay.remove_client(client);
                            self.standstill.forget(client);
                            None
                        }
                    };
                    match wish {
                        Some(Wish::Drain) => {
                            self.go_on(machine, record);
                            self.limits.drain();
                            self.note_stopping(record);
                        }
                        Some(Wish::Stop(Stop { timeout_ms: 0 })) => {
                            return (EndReason::StopRequested, true);
                        }
                        Some(Wish::Stop(Stop { timeout_ms })) => {
                            let timeout = Duration::from_millis(u64::from(timeout_ms));
                            self.begin_stop(EndReason::StopRequested, timeout, machine, record);
                        }
                        Some(Wish::Standstill(want, asker)) => {
                            if let Some(settled) = self.standstill.begin(want, asker, machine) {
                                self.relay.conclude(settled.asker, settled.outcome);
                            }
                        }
                        None => {}
                    }
                },
                settled = self.standstill.settled() => self.settle(settled, record),
                () = machine.clock.jumped() => set_guest_clock(&machine.agent),
                accepted = self.listener.accept() => match accepted {
                    Ok((socket, _)) => self.welcome(socket),
                    Err(error) => tracing::warn!(%error, "accept a client"),
                },
                reason = masters.want_end() => {
                    self.begin_stop(reason, self.config.stop_timeout, machine, record);
                },
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if self.stopping.is_some() {
                        return (self.reason_for_end(), true);
                    }
                    if self.limits.is_idleness() {
                        // Detached jobs have no stream here: the guest knows of them.
                        self.asked_if_idle = true;
                        self.relay.ask_metrics();
                    } else {
                        let timeout = self.config.stop_timeout;
                        self.begin_stop(EndReason::MaxDuration, timeout, machine, record);
                    }
                },
            }
        }
    }

    fn on_client(&mut self, client: ClientId, frame: Frame) -> Option<Wish> {
        match self.relay.on_client(client, frame) {
            Ok(wish) => wish,
            Err(lie) => {
                tracing::warn!(client, lie = lie.0, "client dropped");
                self.relay.remove_client(client);
                None
            }
        }
    }

    fn welcome(&mut self, socket: UnixStream) {
        let (input, output) = socket.into_split();
        let Some(client) = self.relay.add_client(output) else {
            tracing::warn!("client refused: too many");
            return;
        };
        let to_session = self.to_session.clone();
        let reader = tokio::spawn(async move {
            let mut reader = FrameReader::new(input, "client");
            loop {
                // A broken frame ends the client like a hang-up does.
                let frame = reader.next().await.unwrap_or_default();
                let gone = frame.is_none();
                if to_session.send((client, frame)).await.is_err() || gone {
                    return;
                }
            }
        });
        self.relay.set_reader(client, reader.abort_handle());
    }

    /// Does what follows from a wish that was seen to, and answers it.
    fn settle(&mut self, settled: Settled, record: &mut RunRecord) {
        self.note_paused(record);
        if matches!(settled.outcome, Outcome::Saved { .. }) && !record.paused {
            set_guest_clock(self.relay.agent());
        }
        if !self.relay.conclude(settled.asker, settled.outcome) {
            self.standstill.forget(owner(settled.asker));
        }
    }

    /// Lets a machine that stands still go on, so that it can end.
    fn go_on(&mut self, machine: &Machine, record: &mut RunRecord) {
        self.standstill.let_go(machine);
        self.note_paused(record);
    }

    /// Makes clients, timers and the record follow the machine.
    fn note_paused(&mut self, record: &mut RunRecord) {
        let paused = self.standstill.is_paused();
        if paused == record.paused {
            return;
        }
        self.relay.set_paused(paused);
        if paused {
            self.limits.suspend();
        } else {
            self.limits.go_on();
            set_guest_clock(self.relay.agent());
        }
        record.paused = paused;
        self.write_record(record);
        if paused {
            step::reached("supervisor.paused");
        }
    }

    /// Begins an orderly end, or brings forward the deadline of one under way.
    fn begin_stop(
        &mut self,
        reason: EndReason,
        timeout: Duration,
        machine: &Machine,
        record: &mut RunRecord,
    ) {
        let deadline = Instant::now() + timeout;
        if let Some(stopping) = &mut self.stopping {
            stopping.deadline = stopping.deadline.min(deadline);
            return;
        }
        tracing::info!(%reason, "stopping");
        self.go_on(machine, record);
        // The rest of the time is for syncing and unmounting.
        let grace_ms = u32::try_from((timeout / 2).as_millis()).unwrap_or(u32::MAX);
        machine.agent.send(Shutdown { grace_ms }.to_frame(0));
        self.stopping = Some(Stopping { reason, deadline });
        step::reached("supervisor.stopping");
        self.note_stopping(record);
    }

    fn note_stopping(&self, record: &mut RunRecord) {
        record.stopping = true;
        self.write_record(record);
    }

    fn write_record(&self, record: &RunRecord) {
        if let Err(error) = self.dir.write_run_record(record) {
            tracing::error!(%error, "run record");
        }
    }

    fn reason_for_end(&mut self) -> EndReason {
        self.stopping.take().map_or(EndReason::GuestPoweredOff, |stopping| stopping.reason)
    }
}

impl Machine {
    /// Makes sure that the VMM is gone and puts the end on record.
    async fn end(&mut self, config: &LaunchConfig, reason: EndReason, forced: bool) -> ExitRecord {
        // Fails only when it is gone already.
        let _gone = self.child.start_kill();
        let status = timeout(KILL_GRACE, self.child.wait()).await;
        if !self.console_read.is_terminated() {
            let _read_or_late = timeout(KILL_GRACE, &mut self.console_read).await;
        }
        let mut record = exit_record(config, reason, self.console.text());
        record.forced = forced;
        record.vmm_exit = status.ok().and_then(Result::ok).map(VmmExit::of);
        record
    }
}

fn exit_record(config: &LaunchConfig, reason: EndReason, console_tail: String) -> ExitRecord {
    ExitRecord {
        run_id: config.run_id.clone(),
        reason,
        at: Utc::now(),
        forced: false,
        vmm_exit: None,
        console_tail,
    }
}

/// Those who may end the run from outside: the launcher that owns it, and a signal.
#[derive(Debug)]
struct Masters {
    owner: UnixStream,
    owner_watched: bool,
    terminate: Signal,
}

impl Masters {
    fn new(owner: StdUnixStream) -> io::Result<Self> {
        owner.set_nonblocking(true)?;
        let owner = UnixStream::from_std(owner)?;
        Ok(Self { owner, owner_watched: true, terminate: signal(SignalKind::terminate())? })
    }

    /// Completes when the owner is gone without having let go, or a signal asks for the end.
    ///
    /// Cancel safe. An owner that is gone is told once.
    async fn want_end(&mut self) -> EndReason {
        let mut byte = [0];
        loop {
            tokio::select! {
                read = self.owner.read(&mut byte), if self.owner_watched => {
                    self.owner_watched = false;
                    if !matches!(read, Ok(1)) || byte[0] != DETACH {
                        return EndReason::OwnerExited;
                    }
                },
                _ = self.terminate.recv() => return EndReason::Terminated,
            }
        }
    }

    /// Tells the owner how far the boot has come; one that is gone is not told.
    async fn tell(&mut self, progress: &Progress) {
        let mut line = serde_json::to_vec(progress).unwrap_or_default();
        line.push(b'\n');
        if let Err(error) = self.owner.write_all(&line).await {
            tracing::debug!(%error, "nobody waits for the boot");
        }
    }
}
