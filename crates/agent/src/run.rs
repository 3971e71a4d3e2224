//! From `Ready` to the last command: one loop that reads frames and hands them on.

use std::cell::RefCell;
use std::fs::File;
use std::future;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use microsandbox_protocol::{
    Become, ExecDefaults, Frame, FrameDecoder, Kind, Message, Ping, Pong, Ready, Rebirth, SetClock,
    Shutdown, Timestamp, Unsupported,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::io::unix::AsyncFd;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::timeout;

use crate::boot::{self, Identity};
use crate::cgroup::Cgroups;
use crate::console;
use crate::error::Error;
use crate::exec::{Engine, Ground, Whom};
use crate::link::{Inbox, Outbox};
use crate::reaper::Reaper;
use crate::sys::io::watch;

/// Why the agent stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The host asked for it; every command has ended.
    Shutdown,
    /// The host has gone. A guest without one has no purpose.
    HostGone,
}

/// Whose processes end with the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// All of the machine: this is PID 1.
    Machine,
    /// The commands' own.
    Commands,
}

/// Everything the loop needs.
#[derive(Debug)]
pub(crate) struct Setup {
    pub port: OwnedFd,
    /// What was received beyond the last frame of the boot.
    pub decoder: FrameDecoder,
    pub defaults: ExecDefaults,
    pub cgroups: Option<Rc<Cgroups>>,
    pub agent: File,
    pub null: File,
    pub scope: Scope,
    /// What this machine is; none where the machine is not ours.
    pub identity: Option<Identity>,
}

/// Time for processes to go once they were killed; one that stays is stuck in the kernel.
const KILLED: Duration = Duration::from_secs(2);

/// Time for the last output and exit codes to reach clients that still read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Sends `Ready` and runs commands until the end.
///
/// # Errors
/// What makes going on impossible: a port, a reaper or an event loop that fails.
pub(crate) fn run(setup: Setup, ready: impl Fn() -> Ready + 'static) -> Result<End, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(Error::Runtime)?;
    LocalSet::new().block_on(&runtime, async { Agent::new(setup, Box::new(ready))?.live().await })
}

struct Agent {
    /// Tells that commands can run.
    ready: Box<dyn Fn() -> Ready>,
    identity: Option<Identity>,
    port: Rc<AsyncFd<OwnedFd>>,
    inbox: Inbox,
    outbox: Outbox,
    reaper: Rc<Reaper>,
    engine: Rc<Engine>,
    scope: Scope,
    /// The task that ends all commands, once the host has asked for it.
    ending: Option<JoinHandle<()>>,
}

impl Agent {
    fn new(setup: Setup, ready: Box<dyn Fn() -> Ready>) -> Result<Self, Error> {
        let Setup { port, decoder, defaults, cgroups, agent, null, scope, identity } = setup;
        let port = Rc::new(watch(port).map_err(Error::Runtime)?);
        let outbox = Outbox::default();
        let reaper = Rc::new(Reaper::new().map_err(Error::Runtime)?);
        let defaults = RefCell::new(defaults);
        let ground = Ground { defaults, cgroups, agent, null, is_root: geteuid().is_root() };
        Ok(Self {
            ready,
            identity,
            inbox: Inbox::new(Rc::clone(&port), decoder),
            engine: Engine::new(ground, outbox.clone(), Rc::clone(&reaper)),
            port,
            outbox,
            reaper,
            scope,
            ending: None,
        })
    }

    async fn live(mut self) -> Result<End, Error> {
        self.outbox.control(0, &(self.ready)());
        let (port, outbox) = (Rc::clone(&self.port), self.outbox.clone());
        let (reaper, engine) = (Rc::clone(&self.reaper), Rc::clone(&self.engine));
        tokio::select! {
            () = outbox.deliver(&port) => Ok(End::HostGone),
            failed = reaper.run(|| engine.tidy()) => {
                failed.map(|()| End::HostGone).map_err(Error::Runtime)
            }
            end = self.dispatch() => end,
        }
    }

    async fn dispatch(&mut self) -> Result<End, Error> {
        loop {
            let (inbox, outbox) = (&mut self.inbox, &self.outbox);
            let frame = async {
                outbox.ready().await;
                inbox.next().await
            };
            let ended = async {
                match &mut self.ending {
                    Some(task) => task.await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                frame = frame => match frame? {
                    Some(frame) => self.handle(&frame),
                    None => {
                        self.end_commands(Duration::ZERO).await;
                        return Ok(End::HostGone);
                    }
                },
                _ = ended => {
                    // Whoever still reads gets the last output and exit codes.
                    let _ = timeout(LAST_WORDS, self.last_words()).await;
                    return Ok(End::Shutdown);
                }
            }
        }
    }

    fn handle(&mut self, frame: &Frame) {
        match (Kind::from_byte(frame.kind), frame.stream) {
            (Some(Kind::Ping), stream) => match Ping::from_frame(frame) {
                Ok(Ping { token }) => self.outbox.control(stream, &Pong { token }),
                Err(_) => self.outbox.control(stream, &Unsupported { kind: frame.kind }),
            },
            (Some(Kind::Shutdown), 0) => match Shutdown::from_frame(frame) {
                Ok(Shutdown { grace_ms }) => self.shut_down(grace_ms),
                Err(_) => self.outbox.control(0, &Unsupported { kind: frame.kind }),
            },
            (Some(Kind::Hold), 0) => self.outbox.hold(),
            (Some(Kind::Release), 0) => self.outbox.release(),
            (Some(Kind::Rebirth), 0) => match Rebirth::from_frame(frame) {
                Ok(rebirth) => self.be_reborn(&rebirth),
                Err(_) => self.outbox.control(0, &Unsupported { kind: frame.kind }),
            },
            (Some(Kind::Become), 0) => match Become::from_frame(frame) {
                Ok(orders) => self.become_one(orders),
                Err(_) => self.outbox.control(0, &Unsupported { kind: frame.kind }),
            },
            (Some(Kind::SetClock), 0) => match SetClock::from_frame(frame) {
                Ok(SetClock { wall_clock }) => self.set_clock(wall_clock),
                Err(_) => self.outbox.control(0, &Unsupported { kind: frame.kind }),
            },
            _ => self.engine.handle(frame),
        }
    }

    /// Becomes another machine than the one that was saved, with another host, before this returns.
    fn be_reborn(&mut self, rebirth: &Rebirth) {
        self.engine.forget_clients();
        self.outbox.discard();
        let changed =
            self.identity.as_mut().map(|identity| boot::become_another(identity, rebirth));
        self.go_on_as(changed.unwrap_or(Ok(())));
    }

    /// Becomes the sandbox that a machine is for which has served nobody.
    fn become_one(&mut self, orders: Become) {
        let became = self.identity.as_mut().map(|identity| boot::become_one(identity, &orders));
        self.engine.set_defaults(orders.defaults);
        self.go_on_as(became.unwrap_or(Ok(())));
    }

    /// Ends the hold that the machine was saved in, as whatever it is now.
    fn go_on_as(&self, changed: Result<(), Error>) {
        match changed {
            Ok(()) => self.outbox.control(0, &(self.ready)()),
            Err(error) => self.outbox.control(0, &boot::failure(&error)),
        }
        self.outbox.release();
    }

    fn set_clock(&self, now: Timestamp) {
        if self.scope == Scope::Machine
            && let Err(error) = boot::set_clock(now)
        {
            console::report(&error);
        }
    }

    fn shut_down(&mut self, grace_ms: u32) {
        if self.ending.is_none() {
            let grace = Duration::from_millis(grace_ms.into());
            self.ending = Some(spawn_local(self.end_commands(grace)));
        }
    }

    /// Asks every process to end, kills those that have not within `grace`.
    fn end_commands(&self, grace: Duration) -> impl Future<Output = ()> + 'static {
        let (engine, reaper, scope) =
            (Rc::clone(&self.engine), Rc::clone(&self.reaper), self.scope);
        engine.stop_accepting();
        async move {
            if grace > Duration::ZERO {
                signal(&engine, scope, Signal::SIGTERM);
                // A shell that waits at its prompt takes no notice of TERM.
                engine.signal(Signal::SIGHUP, Whom::OnTerminals);
                // A stopped process takes no notice of anything.
                signal(&engine, scope, Signal::SIGCONT);
            }
            if timeout(grace, reaper.childless()).await.is_err() {
                signal(&engine, scope, Signal::SIGKILL);
                // What is left is stuck in the kernel; its writes are lost with or without waiting.
                let _ = timeout(KILLED, reaper.childless()).await;
            }
        }
    }

    async fn last_words(&mut self) -> Result<(), Error> {
        loop {
            tokio::select! {
                () = self.engine.idle() => break,
                // Clients that still take output grant credit for it.
                frame = self.inbox.next() => match frame? {
                    Some(frame) => self.engine.handle(&frame),
                    None => return Ok(()),
                },
            }
        }
        self.outbox.flushed().await;
        Ok(())
    }
}

fn signal(engine: &Engine, scope: Scope, signal: Signal) {
    match scope {
        // ESRCH: nobody is left.
        Scope::Machine => _ = kill(Pid::from_raw(-1), signal),
        Scope::Commands => engine.signal(signal, Whom::All),
    }
}
