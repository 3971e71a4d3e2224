//! `cargo xtask`: everything about this repository that is more than a `cargo build`.
//!
//! This file parses and dispatches; each subcommand is a module of the same name. Nothing here
//! depends on the crates it builds: they reach xtask as binaries.

use std::process::ExitCode;

use clap::Parser as _;

mod agent;
mod bench;
mod cache;
mod check;
mod cli;
mod debian;
mod digest;
mod elf;
mod env;
mod fixtures;
mod fuzz;
mod guest;
mod initramfs;
mod kernel;
mod load;
mod oci;
mod one_file;
mod proc;
mod process;
mod quickstart;
mod setup;
mod soak;
mod terminal;
mod test;
mod tidy;
mod workspace;

fn main() -> ExitCode {
    let outcome = match cli::Cli::parse().command {
        cli::Command::Agent(options) => agent::run(&options),
        cli::Command::Bench(options) => bench::run(&options),
        cli::Command::Check => check::run(),
        cli::Command::Fuzz(options) => fuzz::run(&options),
        cli::Command::Kernel(options) => kernel::run(&options),
        cli::Command::Quickstart => quickstart::run(),
        cli::Command::Setup(options) => setup::run(&options),
        cli::Command::Soak(options) => soak::run(&options),
        cli::Command::Test(options) => test::run(&options),
        cli::Command::Tidy => tidy::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::failure(&error);
            ExitCode::FAILURE
        }
    }
}
