//! `msb snapshot verify` and `rm`: several at once.

use std::path::PathBuf;

use microsandbox::Snapshot;

use crate::{output, report};

/// Arguments of `msb snapshot verify`.
#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Snapshots: names, ids or paths
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<PathBuf>,
}

/// Arguments of `msb snapshot rm`.
#[derive(Debug, clap::Args)]
pub(crate) struct RmArgs {
    /// Names of the snapshots
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

/// Reads them one after the other, and says the name of each that is right.
pub(crate) async fn verify(args: VerifyArgs) -> anyhow::Result<()> {
    let verify = async |path: &PathBuf| {
        Snapshot::open(path)?.verify().await?;
        Ok(path.display().to_string())
    };
    each(&args.snapshots, verify).await
}

/// Removes them one after the other, and says the name of each.
pub(crate) async fn remove(args: RmArgs) -> anyhow::Result<()> {
    let remove = async |name: &String| {
        Snapshot::remove(name).await?;
        Ok(name.clone())
    };
    each(&args.names, remove).await
}

/// A failure does not keep the work from the others; the last one is left to be told.
async fn each<T>(
    items: &[T],
    mut work: impl AsyncFnMut(&T) -> anyhow::Result<String>,
) -> anyhow::Result<()> {
    let mut failed = None;
    for item in items {
        match work(item).await {
            Ok(name) => output::line(name)?,
            Err(error) => {
                if let Some(earlier) = Option::replace(&mut failed, error) {
                    report::tell_failure(&earlier);
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}
