//! Starting a sandbox's supervisor, and owning what was started.

use std::{os::fd::AsFd, process::Child};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::{
    Error, LaunchConfig, Program, Result, RunRecord, SandboxDir, SandboxLock, handover,
    orders::{DETACH, Progress},
    program::Role,
    step,
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
/// `lock` passes to the supervisor. When the future is dropped, the sandbox is stopped.
///
/// # Errors
/// [`Error::MissingGuest`] and [`Error::Program`] before anything runs; [`Error::Boot`] with the
/// cause when the guest did not come up. The sandbox's disks and logs stay as they are.
pub async fn launch(
    program: &Program,
    config: &LaunchConfig,
    lock: SandboxLock,
) -> Result<Launched> {
    config.guest.check()?;
    let dir = SandboxDir::new(&config.dir);
    let log = dir.open_runtime_log()?;
    let failed = |source| Error::Program { program: program.path().to_owned(), source };
    let (mut command, control) =
        program.command(Role::Supervisor, &config.name, log.into()).map_err(failed)?;
    let supervisor = command.spawn().map_err(failed)?;
    drop(command);
    let hand_over = || {
        handover::send(&control, &(config, step::armed()), &[lock.as_fd()])?;
        control.set_nonblocking(true)
    };
    hand_over().map_err(failed)?;
    let control = UnixStream::from_std(control).map_err(failed)?;
    drop(lock);
    let mut owner = Owner { control, supervisor: Some(supervisor) };
    let mut line = String::new();
    BufReader::new(&mut owner.control).read_line(&mut line).await.map_err(failed)?;
    match serde_json::from_str(&line) {
        Ok(Progress::Ready(run)) => Ok(Launched { run: *run, owner }),
        Ok(Progress::Failed(record)) => Err(Error::Boot { name: config.name.clone(), record }),
        Err(_) => Err(Error::Closed { during: "the boot: its supervisor died" }),
    }
}
