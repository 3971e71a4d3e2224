//! The commands, one file each: arguments on top, then what is done with them.

use std::process::ExitCode;

use crate::args::Command;

pub(crate) mod cp;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod history;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod jobs;
pub(crate) mod load;
pub(crate) mod logs;
pub(crate) mod ls;
pub(crate) mod metrics;
pub(crate) mod pause;
pub(crate) mod ping;
pub(crate) mod prune;
pub(crate) mod pull;
pub(crate) mod restart;
pub(crate) mod restore;
pub(crate) mod resume;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod save;
pub(crate) mod shell;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod stop;
mod version;
pub(crate) mod wait;

/// Does what a command line asks for; gives the exit code.
pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    let done = match command {
        Command::Run(args) => return run::run(*args).await,
        Command::Exec(args) => return exec::run(*args).await,
        Command::Jobs(command) => return jobs::run(command).await,
        Command::Wait(args) => return wait::run(args).await,
        Command::Shell(args) => return shell::run(args).await,
        Command::Restore(args) => return restore::run(*args).await,
        Command::Doctor(args) => return doctor::run(args).await,
        Command::Cp(args) => cp::run(args).await,
        Command::Create(args) => create::run(*args).await,
        Command::Start(args) => start::run(args).await,
        Command::Stop(args) => stop::run(args).await,
        Command::Restart(args) => restart::run(args).await,
        Command::Metrics(args) => metrics::run(args).await,
        Command::Pause(args) => pause::run(args).await,
        Command::Resume(args) => resume::run(args).await,
        Command::Ping(args) => ping::run(args).await,
        Command::Prune(args) => prune::run(args).await,
        Command::History(args) => history::run(args).await,
        Command::Fork(args) => fork::run(args).await,
        Command::Snapshot(command) => snapshot::run(command).await,
        Command::Rm(args) => rm::run(args).await,
        Command::Ls(args) => ls::run(args).await,
        Command::Inspect(args) => inspect::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Pull(args) => pull::run(args).await,
        Command::Load(args) => load::run(args).await,
        Command::Save(args) => save::run(args).await,
        Command::Image(command) => image::run(command).await,
        Command::Version => version::run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}
