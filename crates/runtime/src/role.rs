//! Roles: the same program is facade, supervisor, VMM, builder of templates and KVM probe, told apart by `argv[0]`.
//!
//! A program that calls [`init`] first in `main` serves as all of them and ships as one file. One
//! that does not needs an `msb` to run its sandboxes.

use std::{
    ffi::OsStr,
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::{
    program::{Program, Role},
    supervisor, template, vmm,
};

/// Set once [`init`] has run in this process: it may start itself in a role.
static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Turns the process into a supervisor or VMM where it was started as one; returns otherwise.
///
/// Call it first in `main`, before threads, argument parsing or output. In a role it never returns.
pub fn init() {
    INITIALISED.store(true, Ordering::Relaxed);
    let argv0 = std::env::args_os().next().unwrap_or_default();
    let role = Role::ALL.into_iter().find(|role| argv0 == OsStr::new(role.argv0()));
    if let Some(role) = role {
        if matches!(role, Role::Builder | Role::Supervisor)
            && let Err(error) = supervisor::confined::enter(role)
        {
            supervisor::confined::give_up(&error);
            end(true);
        }
        // On a thread of its own, because `main` may be async already and a supervisor needs a runtime
        // that is not inside another. The thread lives as long as the process.
        let ran = std::thread::spawn(move || run(role)).join();
        end(!matches!(ran, Ok(code) if code == ExitCode::SUCCESS));
    }
}

#[expect(
    clippy::disallowed_methods,
    clippy::exit,
    reason = "a role is the whole life of its process; its guards have run"
)]
fn end(failed: bool) -> ! {
    std::process::exit(i32::from(failed))
}

/// This program as one that can be started in a role, if [`init`] ran in it.
pub fn own_program() -> Option<Program> {
    let able = INITIALISED.load(Ordering::Relaxed);
    able.then(|| Program::at("/proc/self/exe"))
}

fn run(role: Role) -> ExitCode {
    match role {
        Role::Builder => template::build::run(),
        Role::Probe => vmm::probe::run(),
        Role::Supervisor => supervisor::run(),
        Role::Vmm => vmm::process::run(),
    }
}
