//! `msb fork`: several sandboxes of a running one.

use microsandbox::Sandbox;

use crate::output;

/// Arguments of `msb fork`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the running sandbox
    sandbox: String,
    /// Name of a child; may be repeated
    #[arg(short, long = "name", value_name = "NAME", required = true)]
    names: Vec<String>,
}

/// Makes the children, which live on, and says the name of each.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let parent = Sandbox::get(&args.sandbox).await?.connect().await?;
    let children = parent.fork_detached(args.names).await?;
    children.iter().map(Sandbox::name).try_for_each(output::line)
}
