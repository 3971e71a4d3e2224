//! The supervisor: owns one sandbox from launch to exit record.
//!
//! ```text
//!              launcher's socket (config, then ownership)
//!                        │
//!   VMM child ───────▶ serve ◀─────── SIGTERM
//!   agent port ◀─────▶ relay ◀──────▶ clients on agent.sock
//!   console ─────────▶ kernel.log          output of commands ─▶ exec.log
//! ```
//!
//! One task owns the state of the run; readers and writers around it only move bytes. It is not
//! told what is right: it holds the lock, starts the VMM, and writes down how it ended.

mod boot;
mod clock;
pub(crate) mod confined;
mod console;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod limits;
pub(crate) mod machine;
mod relay;
mod run;
mod save;
mod standstill;
mod start;

pub(crate) use boot::{become_nobody, become_nobody_again, vm_spec};

use std::{
    io::{self, Write},
    os::{fd::AsFd, unix::net::UnixStream as StdUnixStream},
    process::ExitCode,
};

use nix::sys::{
    prctl,
    stat::{Mode, umask},
};

use crate::{
    LaunchConfig,
    handover::{self, Refusal},
    orders::{Belongings, Progress},
    program::Role,
    step,
    template::plan::Shapes,
};

/// The role: supervises until the sandbox has ended.
pub(crate) fn run() -> ExitCode {
    match take_orders().and_then(supervise) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // There may be no subscriber yet: the log is the standard error either way.
            let _nobody_listens = writeln!(io::stderr(), "supervisor failed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a launcher hands over.
#[derive(Debug)]
struct Orders {
    config: LaunchConfig,
    /// What its machine can go on from.
    shapes: Shapes,
    control: StdUnixStream,
    belongings: Belongings,
}

fn take_orders() -> io::Result<Orders> {
    let control = StdUnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let come_with = |(config, ..): &(LaunchConfig, _, _)| 1 + config.sockets();
    let ((config, shapes, stop_at), descriptors) =
        handover::receive_counted(&control, Role::Supervisor, come_with)
            .map_err(|refusal| refuse(&control, refusal))?;
    step::stop_at(stop_at);
    let belongings = Belongings::take(&config, descriptors)?;
    // A session of its own: the terminal's signals are for the owner, who then lets go of the
    // control socket. Fails only for a process that leads a session already.
    let _already_leader = nix::unistd::setsid();
    umask(Mode::from_bits_truncate(0o077));
    prctl::set_dumpable(false)?;
    Ok(Orders { config, shapes, control, belongings })
}

/// Tells the launcher why its orders are not taken, in words that every build understands.
fn refuse(mut control: &StdUnixStream, refusal: Refusal) -> io::Error {
    let refused =
        Progress::Refused { build: handover::this_build().into(), why: refusal.to_string() };
    let mut line = serde_json::to_vec(&refused).unwrap_or_default();
    line.push(b'\n');
    // A launcher that is gone does not want to know.
    let _unheard = control.write_all(&line);
    io::Error::other(refusal)
}

fn supervise(orders: Orders) -> io::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(&orders.config.log))
        .with_writer(io::stderr)
        .with_ansi(false)
        // Told on standard error, too: a log on a full disk would end the supervisor by a panic.
        .log_internal_errors(false)
        .init();
    // One thread: the work is waiting and moving bytes, and an idle supervisor must not wake.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run::run(orders))
}
