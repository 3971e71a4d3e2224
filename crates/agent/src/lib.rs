//! The agent: PID 1 of a sandbox. It boots the guest, runs commands for the host, and ends the machine.
//!
//! It knows guest system calls: mounts, processes, cgroups, files. It speaks
//! [`microsandbox_protocol`] over a virtio-console port and nothing else; it knows no SQL, no HTTP,
//! and nothing of the host but its frames. One thread, one event loop; `unsafe` in `sys` alone.
//!
//! ```text
//!  init ── boot ── Hello ⇄ Bootstrap (port) ── Ready
//!                                               │
//!  run: frames ──▶ exec engine ──▶ sessions ──▶ outbox ──▶ port      (link)
//!                     │ clone3        │ pipes, terminal, credit
//!                     │               └─ `agentd files`: a file operation is a command, too
//!                     └─ cgroup       └─ reaper: the end of every child
//! ```
//!
//! PID 1 must not end, so a command, a client or an image may do what it likes without ending the
//! agent; what does end it is [`Error`], told on the console before the machine stops.

mod boot;
mod cgroup;
mod console;
mod error;
mod exec;
mod fd;
mod files;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod init;
mod jobs;
mod link;
mod metrics;
mod port;
mod reaper;
mod role;
mod run;
mod serve;
mod sys;
mod users;

pub use error::Error;
pub use role::Role;

/// Does what `role` asks for, to its end.
///
/// # Errors
/// What ended it early; PID 1 has told it on the console and does not come back from a machine that
/// can restart.
pub fn run(role: Role) -> Result<(), Error> {
    match role {
        Role::SelfTest => return Ok(()),
        Role::Files => return files::run(std::env::args_os().nth(2)),
        Role::Init | Role::Serve => {}
    }
    sys::process::close_inherited_on_exec().map_err(|errno| Error::Runtime(errno.into()))?;
    sys::process::set_signals().map_err(|errno| Error::Runtime(errno.into()))?;
    match role {
        Role::Init => init::init(),
        Role::Serve => serve::serve(),
        Role::Files | Role::SelfTest => Ok(()),
    }
}
