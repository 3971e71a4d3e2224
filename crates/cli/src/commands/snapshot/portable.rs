//! `msb snapshot export` and `import`: snapshots as files.

use std::{io, io::IsTerminal, path::PathBuf};

use microsandbox::{Snapshot, SnapshotLoadOptions, SnapshotSaveOptions};

use crate::output;

/// Arguments of `msb snapshot export`.
#[derive(Debug, clap::Args)]
pub(crate) struct ExportArgs {
    /// Snapshot: a name, an id or a path
    snapshot: PathBuf,
    /// File to write, a .tar.zst; - for standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Send the image along
    #[arg(long)]
    with_image: bool,
}

/// Arguments of `msb snapshot import`.
#[derive(Debug, clap::Args)]
pub(crate) struct ImportArgs {
    /// File to read; - for standard input
    #[arg(short, long, value_name = "FILE")]
    input: PathBuf,
    /// Name of the snapshot here [default: the one it was taken under]
    #[arg(short, long)]
    name: Option<String>,
    /// Replace a snapshot that has the name
    #[arg(short, long)]
    force: bool,
}

/// Writes it; says nothing where that works.
pub(crate) async fn export(args: ExportArgs) -> anyhow::Result<()> {
    let mut options = SnapshotSaveOptions::default();
    if args.with_image {
        options = options.with_image();
    }
    if args.output.as_os_str() == "-" {
        anyhow::ensure!(!io::stdout().is_terminal(), "an archive is nothing for a terminal");
        return Ok(Snapshot::save_to(&args.snapshot, io::stdout(), options).await?);
    }
    Ok(Snapshot::save(&args.snapshot, &args.output, options).await?)
}

/// Takes it in, and says its name and id.
pub(crate) async fn import(args: ImportArgs) -> anyhow::Result<()> {
    let mut options = SnapshotLoadOptions::default();
    if let Some(name) = args.name {
        options = options.with_name(name);
    }
    if args.force {
        options = options.with_force();
    }
    let imported = if args.input.as_os_str() == "-" {
        Snapshot::load_from(io::stdin(), options).await?
    } else {
        Snapshot::load(&args.input, options).await?
    };
    output::line(format_args!("{} {}", imported.name(), imported.id()))
}
