//! `msb ping`: whether a sandbox answers, and how fast.

use std::time::Duration;

use anyhow::Context as _;
use microsandbox::Sandbox;

use crate::{output, values};

/// Arguments of `msb ping`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
    /// Longest wait for the answer
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
    time: Duration,
}

/// Has the guest run a command that does nothing, and says how long that took.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let sandbox = Sandbox::get(&args.name).await?.connect().await?;
    let answer = tokio::time::timeout(args.time, sandbox.ping()).await;
    let took = answer.with_context(|| {
        format!("ping sandbox '{}': no answer within {:?}", args.name, args.time)
    })??;
    output::line(format_args!("{} answered in {:.1} ms", args.name, took.as_secs_f64() * 1000.0))
}
