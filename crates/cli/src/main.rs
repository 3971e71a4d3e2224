//! `msb`: sandboxes from a shell.
//!
//! This file starts and ends the process; what a command does is in `commands`, what it says in
//! `output` and `report`. Everything it knows of sandboxes comes through the facade.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

mod args;
mod boot;
mod commands;
mod definition;
mod interrupt;
mod log;
mod output;
mod report;
mod selection;
mod session;
mod stream;
mod values;

fn main() -> ExitCode {
    microsandbox::reexec::init();
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return report::usage(&error),
    };
    report::write_failures_as(cli.error_format);
    log::start();
    let mut runtime = match cli.command.only_looks() {
        // Threads cost more than such a command takes.
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    let runtime = match runtime.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report::failure(&anyhow::Error::new(error).context("start msb")),
    };
    let ended = runtime.block_on(commands::run(cli.command));
    // A write to a terminal that nobody reads must not keep the process.
    runtime.shutdown_background();
    ended.unwrap_or_else(|error| report::failure(&error))
}
