//! Starting a sandbox's supervisor, and owning what was started.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::{
    Error, LaunchConfig, Program, Result, RunRecord, SandboxDir, handover,
    orders::{Belongings, DETACH, Progress},
    program::Role,
    record::ColdReason,
    step,
    supervisor::{confined, vm_spec},
    template::plan::Plan,
};

/// A sandbox that takes commands.
#[derive(Debug)]
pub struct Launched {
    /// Its run, as `run.json` has it.
    pub run: RunRecord,
    /// The hold on it.
    pub owner: Owner,
}

/// The hold of the process that launched a sandbox.
///
/// The supervisor watches the other end: when this is dropped, or its process dies in whatever way,
/// the sandbox is stopped in order. [`Owner::detach`] lets it live on.
#[derive(Debug)]
pub struct Owner {
    control: UnixStream,
    supervisor: Option<Child>,
}

impl Owner {
    /// Lets the sandbox outlive this process.
    ///
    /// # Errors
    /// [`Error::System`] when the supervisor cannot be told; the sandbox has ended then.
    pub async fn detach(mut self) -> Result<()> {
        self.control.write_all(&[DETACH]).await.map_err(Error::system("release the sandbox"))
    }
}

/// Whether the far end of a socket is closed, read or unread.
fn is_hang_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

impl Owner {
    /// Why a supervisor hung up without a word: it died, or is a program that knows no such role.
    async fn explain_silence(&mut self, program: &Program) -> Error {
        match self.wait_for_supervisor().await {
            Ok(Some(status)) if status.signal().is_none() => Error::ProgramSilent {
                program: program.path().to_owned(),
                ended: status.to_string(),
            },
            Ok(_) => Error::Closed { during: "the boot: its supervisor was killed" },
            Err(source) => Error::Program { program: program.path().to_owned(), source },
        }
    }

    /// Until a supervisor that has given up is gone, what was sent to it is held by its socket.
    async fn wait_for_supervisor(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(mut child) = self.supervisor.take() else { return Ok(None) };
        let waited = tokio::task::spawn_blocking(move || child.wait()).await;
        waited.map_err(io::Error::other)?.map(Some)
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // The supervisor outlives this handle by the time an orderly stop takes; a thread collects
        // it, so that a long-lived owner gathers no zombies.
        if let Some(mut child) = self.supervisor.take() {
            let reap = move || {
                let _status = child.wait();
            };
            let _no_thread = std::thread::Builder::new().name("msb-reap".into()).spawn(reap);
        }
    }
}

/// Starts the supervisor of a sandbox and waits until the sandbox takes commands.
///
/// `belongings`, the lock above all, pass to the supervisor. When the future is dropped, the sandbox is
/// stopped.
///
/// # Errors
/// [`Error::Devices`], [`Error::Unconfined`], [`Error::MissingGuest`], [`Error::Program`], [`Error::ProgramRefused`] and
/// [`Error::ProgramSilent`] before anything runs; [`Error::Boot`] with the cause when the guest did
/// not come up. The sandbox's disks and logs stay as they are.
pub async fn launch(
    program: &Program,
    config: &LaunchConfig,
    belongings: impl Into<Belongings>,
) -> Result<Launched> {
    let belongings = belongings.into();
    config.guest.check()?;
    let can = config.vmm.driver().capabilities();
    let devices = vm_spec(config).devices;
    let fits = devices.check(config.vmm.kind, can, &belongings.sockets);
    fits.map_err(|source| Error::Devices { source })?;
    config.confinement.check(devices.keeper(can.shares))?;
    let profile = confined::profile(config).map_err(Error::file("read", &config.lower))?;
    let plan = plan_of(config).await;
    let dir = SandboxDir::new(&config.dir);
    let log = dir.open_runtime_log()?;
    let failed = |source| Error::Program { program: program.path().to_owned(), source };
    let (mut command, control) =
        program.command(Role::Supervisor, &config.name, log.into()).map_err(failed)?;
    let supervisor = command.spawn().map_err(failed)?;
    drop(command);
    let handed_over = handover::send(&control, Role::Supervisor, &profile, &[]).and_then(|()| {
        let orders = (config, &plan.shapes, step::handed_on());
        handover::send(&control, Role::Supervisor, &orders, &belongings.descriptors())
    });
    control.set_nonblocking(true).map_err(failed)?;
    let control = UnixStream::from_std(control).map_err(failed)?;
    drop(belongings);
    let mut owner = Owner { control, supervisor: Some(supervisor) };
    let mut line = String::new();
    // One that refuses its first orders does not wait for the others; its answer is there all the same.
    let answered = match handed_over {
        Err(error) if !is_hang_up(&error) => Err(error),
        _ => BufReader::new(&mut owner.control).read_line(&mut line).await.map(drop),
    };
    match answered {
        Ok(()) => {}
        Err(error) if is_hang_up(&error) => return Err(owner.explain_silence(program).await),
        Err(error) => return Err(failed(error)),
    }
    match serde_json::from_str(&line) {
        Ok(Progress::Ready(run)) => {
            plan.provide_for_the_next(program, config, &run);
            Ok(Launched { run: *run, owner })
        }
        Ok(Progress::Failed(record)) => Err(Error::Boot { name: config.name.clone(), record }),
        Ok(Progress::Refused { build, why }) => {
            owner.wait_for_supervisor().await.map_err(failed)?;
            Err(Error::ProgramRefused { program: program.path().to_owned(), build, why })
        }
        Err(_) => Err(owner.explain_silence(program).await),
    }
}

/// On a thread that may block: the first time, large files are read.
async fn plan_of(config: &LaunchConfig) -> Plan {
    let config = config.clone();
    let plan = tokio::task::spawn_blocking(move || Plan::make(&config)).await;
    plan.unwrap_or_else(|error| Plan::cold(ColdReason::Unusable { detail: error.to_string() }))
}
