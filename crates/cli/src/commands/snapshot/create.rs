//! `msb snapshot create`.

use std::path::PathBuf;

use microsandbox::Snapshot;

use crate::{output, report, values};

/// Arguments of `msb snapshot create`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the snapshot
    name: String,
    /// Sandbox to take it of
    #[arg(long, value_name = "SANDBOX")]
    from: String,
    /// Put it into this directory, under its name, and not into the home
    #[arg(long, value_name = "DIR")]
    dest_dir: Option<PathBuf>,
    /// Add a label
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
    /// Take memory, processors and devices of the running machine, too
    #[arg(long)]
    full: bool,
    /// Replace a snapshot that has the name
    #[arg(short, long)]
    force: bool,
}

/// Takes it, and says its name and id.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut snapshot = Snapshot::builder(args.name).from_sandbox(args.from);
    if let Some(directory) = args.dest_dir {
        snapshot = snapshot.dest_dir(directory);
    }
    if args.full {
        snapshot = snapshot.full();
    }
    if args.force {
        snapshot = snapshot.force();
    }
    let labels = args.label.into_iter();
    let snapshot = labels.fold(snapshot, |snapshot, (key, value)| snapshot.label(key, value));
    let taken = snapshot.create().await?;
    if let Some(still) = taken.stood_still() {
        report::note(format_args!("the sandbox stood still for {} ms", still.as_millis()));
    }
    output::line(format_args!("{} {}", taken.name(), taken.id()))
}
