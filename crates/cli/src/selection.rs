//! Which sandboxes a command is for: names, a label, or all; and working through them.

use std::time::Duration;

use microsandbox::{MicrosandboxError, Sandbox, SandboxFilter, SandboxHandle};

use crate::{output, report, values};

/// Which sandboxes a command is for.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
pub(crate) struct Selection {
    /// Names of the sandboxes
    #[arg(conflicts_with_all = ["all", "label"])]
    names: Vec<String>,
    /// Every sandbox to which the command applies
    #[arg(short, long)]
    all: bool,
    /// Those with this label; several must all match
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::label)]
    label: Vec<(String, String)>,
}

/// How long the sandboxes may take to end.
#[derive(Debug, clap::Args)]
pub(crate) struct Grace {
    /// Time to end in order, after which a sandbox is killed
    #[arg(short, long, value_name = "TIME", default_value = "10s", value_parser = values::duration)]
    pub(crate) time: Duration,
}

/// What a name that no sandbox has means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// A mistake.
    Fail,
    /// Nothing to do.
    PassOver,
}

impl Selection {
    /// Does `work` on each sandbox in turn, and says the name of each it is done with. By label or
    /// `--all` it leaves out those to which it does not `apply`. A failure does not keep it from the
    /// others: the last one is returned, those before it are told.
    pub(crate) async fn each(
        self,
        missing: Missing,
        apply: impl Fn(&SandboxHandle) -> bool,
        mut work: impl AsyncFnMut(SandboxHandle) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut failed: Option<anyhow::Error> = None;
        for name in self.chosen(apply).await? {
            let done = match Sandbox::get(&name).await {
                Ok(sandbox) => work(sandbox).await,
                Err(error) => Err(error.into()),
            };
            match done {
                Ok(()) => output::line(&name)?,
                Err(error) if is_missing(&error) && self.passes_over(missing) => {}
                Err(error) => {
                    if let Some(earlier) = failed.replace(error) {
                        report::tell_failure(&earlier);
                    }
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// One that nobody asked for by name, and that has gone since it was listed, is missed by none.
    fn passes_over(&self, missing: Missing) -> bool {
        missing == Missing::PassOver || self.names.is_empty()
    }

    async fn chosen(&self, apply: impl Fn(&SandboxHandle) -> bool) -> anyhow::Result<Vec<String>> {
        if !self.names.is_empty() {
            return Ok(self.names.clone());
        }
        let filter = SandboxFilter::new().labels(self.label.iter().cloned());
        let all = Sandbox::list_with(filter).await?;
        Ok(all.iter().filter(|handle| apply(handle)).map(|handle| handle.name().into()).collect())
    }
}

fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(MicrosandboxError::SandboxNotFound(_)))
}
