//! `msb snapshot`: what sandboxes were at one moment.

mod create;
mod inspect;
mod ls;
mod portable;
mod stored;

/// Commands on snapshots.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Take a snapshot of a sandbox.
    Create(create::Args),
    /// List snapshots.
    #[command(visible_alias = "list")]
    Ls(ls::Args),
    /// Show all that is known of a snapshot, as JSON.
    Inspect(inspect::Args),
    /// Read snapshots and compare them with their digests.
    Verify(stored::VerifyArgs),
    /// Remove snapshots.
    Rm(stored::RmArgs),
    /// Write a snapshot to one file.
    Export(portable::ExportArgs),
    /// Take in a snapshot that was exported.
    Import(portable::ImportArgs),
}

/// Does what is asked for.
pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create::run(args).await,
        Command::Ls(args) => ls::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Verify(args) => stored::verify(args).await,
        Command::Rm(args) => stored::remove(args).await,
        Command::Export(args) => portable::export(args).await,
        Command::Import(args) => portable::import(args).await,
    }
}
