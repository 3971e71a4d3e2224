//! The command line as a whole; the arguments of a command are in its own file.

use clap::{Parser, Subcommand};

use crate::{
    commands::{
        cp, create, doctor, exec, fork, history, image, inspect, jobs, load, logs, ls, metrics,
        pause, ping, prune, pull, restart, restore, resume, rm, run, save, shell, snapshot, start,
        stop, wait,
    },
    report::ErrorFormat,
};

/// Run untrusted workloads in local microVMs.
#[derive(Debug, Parser)]
#[command(name = "msb", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Cli {
    /// How to write failures
    #[arg(long, global = true, value_enum, default_value_t, hide_possible_values = true)]
    pub(crate) error_format: ErrorFormat,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "\
Exit code: that of the command in the sandbox; 127 and 126 when it was not found or not executable,
128 and the signal's number when a signal ended it, 124 when its time was up, 125 when msb failed.

Environment: MSB_HOME, MSB_PATH, MSB_VMM, MSB_KERNEL, MSB_LOG and others; see docs/cli.md.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a command in a new sandbox.
    Run(Box<run::Args>),
    /// Create a sandbox and start it.
    Create(Box<create::Args>),
    /// Run a command in a running sandbox.
    Exec(Box<exec::Args>),
    /// Use the shell of a running sandbox on this terminal.
    Shell(shell::Args),
    /// Copy files and trees between the host, sandboxes and tar streams.
    Cp(cp::Args),
    /// Work with commands that were started with `exec -d`.
    #[command(subcommand)]
    Jobs(jobs::Command),
    /// Start stopped sandboxes.
    Start(start::Args),
    /// Stop running sandboxes.
    Stop(stop::Args),
    /// Stop sandboxes and start them again.
    Restart(restart::Args),
    /// Have sandboxes stand still.
    Pause(pause::Args),
    /// Have sandboxes go on that stand still.
    Resume(resume::Args),
    /// Wait until a sandbox has ended, and say why it did.
    Wait(wait::Args),
    /// Say whether a sandbox answers, and how fast.
    Ping(ping::Args),
    /// Take snapshots of sandboxes, and work with those there are.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Create a sandbox from a snapshot and start it.
    Restore(Box<restore::Args>),
    /// Make several sandboxes of a running one.
    Fork(fork::Args),
    /// Remove sandboxes with their disks and logs.
    Rm(rm::Args),
    /// Remove sandboxes that do not run.
    Prune(prune::Args),
    /// List sandboxes.
    #[command(visible_aliases = ["ps", "list"])]
    Ls(ls::Args),
    /// Show all that is known of a sandbox, as JSON.
    Inspect(inspect::Args),
    /// Show what running sandboxes use.
    Metrics(metrics::Args),
    /// Show how runs of sandboxes ended, also of removed ones.
    History(history::Args),
    /// Show the logs of a sandbox.
    Logs(logs::Args),
    /// Fetch an image from its registry.
    Pull(pull::Args),
    /// Load images from an archive.
    Load(load::Args),
    /// Save images to an archive.
    Save(save::Args),
    /// Work with the images in the store.
    #[command(subcommand)]
    Image(image::Command),
    /// Say what this machine has and lacks for running sandboxes.
    Doctor(doctor::Args),
    /// Say which version of msb this is.
    Version,
}

impl Command {
    /// Whether it reads what is there and waits for nothing.
    pub(crate) const fn only_looks(&self) -> bool {
        matches!(self, Self::History(_) | Self::Inspect(_) | Self::Ls(_) | Self::Version)
    }
}
