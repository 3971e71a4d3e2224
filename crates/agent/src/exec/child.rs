//! A command between `clone3` and `execve`: a process of its own that finds out whom to become, does
//! so, and tells how far it came.
//!
//! ```text
//!  fork ──▶ session, terminal, streams ──▶ /etc/passwd ──▶ limits, user, directory ──▶ execve
//!              └── any of these fails, or hangs, here alone ──▶ step and error number
//! ```
//!
//! Nothing comes from a child whose program runs, or that was killed on the way: its end of the pipe
//! closes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::signal::SigSet;
use nix::unistd::{
    Gid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fchown, pipe2, read, setgroups,
    setresgid, setresuid, setsid, write,
};
use tokio::io::unix::AsyncFd;

use crate::exec::plan::{Candidates, Plan, Who};
use crate::exec::stdio::{Theirs, never_blocking};
use crate::sys::clone::{close_all_but, execute, execute_open, fork, set_limit};
use crate::sys::device;
use crate::users::{Accounts, Identity, User};

/// What the child was doing when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Being created.
    Clone,
    /// Leaving the agent's session.
    Session,
    /// Taking the controlling terminal.
    Terminal,
    /// Putting standard input, output and error in place.
    Stdio,
    /// Setting the limit with this index.
    Limit(u8),
    /// Finding user and groups, and taking them on.
    Identity,
    /// Entering the working directory.
    Directory,
    /// Executing the file.
    Execute,
}

/// A process that could not be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("start a process: {step:?}")]
pub(super) struct StartFailed {
    /// What it was doing.
    pub step: Step,
    /// What the kernel said; 0: nothing.
    #[source]
    pub errno: Errno,
}

impl StartFailed {
    /// Of a user that is not there, which is no error of the kernel's.
    const fn no_such_user() -> Self {
        Self { step: Step::Identity, errno: Errno::UnknownErrno }
    }

    /// Step, index and error number, as they travel through the pipe.
    fn to_bytes(self) -> [u8; REPORT_LEN] {
        let (step, index) = match self.step {
            Step::Clone => (0, 0),
            Step::Session => (1, 0),
            Step::Terminal => (2, 0),
            Step::Stdio => (3, 0),
            Step::Limit(index) => (4, index),
            Step::Identity => (5, 0),
            Step::Directory => (6, 0),
            Step::Execute => (7, 0),
        };
        let [a, b, c, d] = (self.errno as i32).to_le_bytes();
        [step, index, a, b, c, d]
    }

    fn from_bytes([step, index, a, b, c, d]: [u8; REPORT_LEN]) -> Self {
        let step = match step {
            1 => Step::Session,
            2 => Step::Terminal,
            3 => Step::Stdio,
            4 => Step::Limit(index),
            5 => Step::Identity,
            6 => Step::Directory,
            7 => Step::Execute,
            _ => Step::Clone,
        };
        Self { step, errno: Errno::from_raw(i32::from_le_bytes([a, b, c, d])) }
    }
}

const REPORT_LEN: usize = 6;

/// What a child needs beside its plan.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub theirs: &'a Theirs,
    /// `/dev/null`.
    pub null: BorrowedFd<'a>,
    /// The agent's own file.
    pub agent: BorrowedFd<'a>,
    /// Whether standard input is a terminal that becomes the controlling one.
    pub on_terminal: bool,
    /// Whether it becomes the user of its plan; else it stays whoever the agent is.
    pub changes_user: bool,
    /// Directory of the cgroup v2 it is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A child on its way to its program.
#[derive(Debug)]
pub(super) struct Starting {
    pub pid: libc::pid_t,
    report: AsyncFd<OwnedFd>,
}

impl Starting {
    /// Makes the child.
    ///
    /// # Errors
    /// [`Step::Clone`]; everything else is told by [`Starting::outcome`].
    pub(super) fn new(plan: &Plan, around: &Surroundings<'_>) -> Result<Self, StartFailed> {
        let failed = |errno| StartFailed { step: Step::Clone, errno };
        let (report, tell) = pipe2(OFlag::O_CLOEXEC).map_err(failed)?;
        let report = never_blocking(report)
            .map_err(|error| failed(Errno::try_from(error).unwrap_or(Errno::EIO)))?;
        let child = || {
            let failed = become_program(plan, around, tell.as_fd());
            // The agent is there for as long as the machine is.
            let _ = write(&tell, &failed.to_bytes());
        };
        let pid = fork(around.cgroup, child).map_err(failed)?;
        Ok(Self { pid, report })
    }

    /// Returns once its program runs, or it was killed before.
    ///
    /// # Errors
    /// Why there is no program to run.
    pub(super) async fn outcome(self) -> Result<(), StartFailed> {
        let mut bytes = [0; REPORT_LEN];
        loop {
            let Ok(mut ready) = self.report.readable().await else { return Ok(()) };
            // So few bytes come in one piece.
            match read(&self.report, &mut bytes) {
                Ok(REPORT_LEN) => return Err(StartFailed::from_bytes(bytes)),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                Err(Errno::EINTR) => {}
                Ok(_) | Err(_) => return Ok(()),
            }
        }
    }
}

/// Runs in the child; comes back only when something failed.
fn become_program(plan: &Plan, around: &Surroundings<'_>, tell: BorrowedFd<'_>) -> StartFailed {
    let prepared = leave_session(around)
        .and_then(|()| place_stdio(around, tell))
        .and_then(|()| find_user(plan))
        .and_then(|user| {
            let env = plan.env.of(&user).map_err(failed_at(Step::Identity))?;
            give_stdio(around.theirs, &user.identity)?;
            // From here on memory may be limited: nothing takes any.
            limit(plan)?;
            if around.changes_user {
                take_identity(&user.identity)?;
            }
            chdir(plan.cwd.as_c_str()).map_err(failed_at(Step::Directory))?;
            // The agent blocks what it reads from a descriptor.
            SigSet::empty().thread_set_mask().map_err(failed_at(Step::Session))?;
            Ok(env)
        });
    match prepared {
        Ok(env) => {
            let errno = match &plan.program {
                Candidates::Paths(paths) => {
                    first_of(paths.iter().map(|path| execute(path, &plan.args, &env)))
                }
                Candidates::Agent => execute_open(around.agent, &plan.args, &env),
            };
            StartFailed { step: Step::Execute, errno }
        }
        Err(failed) => failed,
    }
}

const fn failed_at(step: Step) -> impl FnOnce(Errno) -> StartFailed {
    move |errno| StartFailed { step, errno }
}

fn leave_session(around: &Surroundings<'_>) -> Result<(), StartFailed> {
    setsid().map_err(failed_at(Step::Session))?;
    if around.on_terminal {
        let terminal = around.theirs.all(around.null)[0];
        device::take_terminal(terminal).map_err(failed_at(Step::Terminal))?;
    }
    Ok(())
}

fn place_stdio(around: &Surroundings<'_>, tell: BorrowedFd<'_>) -> Result<(), StartFailed> {
    let [stdin, stdout, stderr] = around.theirs.all(around.null);
    let placed =
        dup2_stdin(stdin).and_then(|()| dup2_stdout(stdout)).and_then(|()| dup2_stderr(stderr));
    placed.map_err(failed_at(Step::Stdio))?;
    close_all_but([tell.as_raw_fd(), around.agent.as_raw_fd()]);
    Ok(())
}

fn find_user(plan: &Plan) -> Result<User, StartFailed> {
    match &plan.who {
        Who::Agent => Ok(User::root()),
        Who::Named(spec) => Accounts::read(Path::new("/etc"))
            .find_or_root(spec)
            .map_err(|_| StartFailed::no_such_user()),
    }
}

/// `/dev/stdout` and the like are opened anew, with the rights of whoever the command runs as.
fn give_stdio(theirs: &Theirs, identity: &Identity) -> Result<(), StartFailed> {
    if identity.uid == 0 {
        return Ok(());
    }
    let owner = Some(Uid::from_raw(identity.uid));
    let give = |fd: BorrowedFd<'_>| fchown(fd, owner, None::<Gid>);
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let input = if theirs.has_stdin() { give(stdin.as_fd()) } else { Ok(()) };
    input
        .and_then(|()| give(stdout.as_fd()))
        .and_then(|()| give(stderr.as_fd()))
        .map_err(failed_at(Step::Identity))
}

fn limit(plan: &Plan) -> Result<(), StartFailed> {
    for (index, (resource, limit)) in (0..).zip(&plan.rlimits) {
        set_limit(*resource, limit).map_err(failed_at(Step::Limit(index)))?;
    }
    Ok(())
}

fn take_identity(identity: &Identity) -> Result<(), StartFailed> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    setgroups(&identity.groups)
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .map_err(failed_at(Step::Identity))
}

/// Tries one path after the other, as `execvp(3)` does; gives the error number that says most.
fn first_of(tries: impl Iterator<Item = Errno>) -> Errno {
    let mut worst = Errno::ENOENT;
    for errno in tries {
        match errno {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // Another directory may hold one that may be run.
            Errno::EACCES => worst = Errno::EACCES,
            other => return other,
        }
    }
    worst
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_step_index_and_error_number() {
        for step in [
            Step::Clone,
            Step::Session,
            Step::Terminal,
            Step::Stdio,
            Step::Limit(0),
            Step::Limit(255),
            Step::Identity,
            Step::Directory,
            Step::Execute,
        ] {
            let failed = StartFailed { step, errno: Errno::ENOENT };
            assert_eq!(StartFailed::from_bytes(failed.to_bytes()), failed);
        }
        let failed = StartFailed::no_such_user();
        assert_eq!(StartFailed::from_bytes(failed.to_bytes()), failed);
    }
}
