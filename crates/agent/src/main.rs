//! `agentd`, the agent's binary: `/init` of every guest.

use std::env;
use std::process::{self, ExitCode};

use microsandbox_agent::{Role, run};

fn main() -> ExitCode {
    let argument = env::args_os().nth(1);
    let Some(role) = Role::of(process::id(), argument.as_deref()) else {
        return ExitCode::from(2);
    };
    match run(role) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
