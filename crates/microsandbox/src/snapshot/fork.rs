//! Forking: a running sandbox becomes several, in one pause.

use std::{num::NonZero, thread};

use futures_util::{StreamExt as _, stream};
use microsandbox_db::SandboxId;
use microsandbox_runtime::{SandboxDir, step};

use super::{CHECKPOINT, Origin, UPPER, restore::Other, take::Saved};
use crate::{
    MicrosandboxError, MicrosandboxResult, Sandbox, SandboxConfig, SandboxHandle,
    create::{self, Mode},
    home::Home,
    names,
    thread::on_thread,
};

/// Makes children of a running sandbox, one of each name. All of them, or none.
pub(crate) async fn fork(
    home: &Home,
    parent: &SandboxConfig,
    dir: &SandboxDir,
    names: Vec<String>,
    mode: Mode,
) -> MicrosandboxResult<Vec<Sandbox>> {
    names.iter().try_for_each(|name| names::validate_sandbox_name(name))?;
    let (saved, still) = Saved::of(home, dir, &parent.name).await?;
    tracing::info!(sandbox = parent.name, ?still, "stood still to be forked");
    // A draft that is never published: it goes when this is done, however that ends.
    let store = home.snapshots();
    let draft = on_thread("take-fork", move || saved.into_draft(&store)).await?;
    step::reached("fork.taken");
    let other = Other {
        name: parent.name.clone(),
        definition: parent.clone(),
        upper: draft.path().join(UPPER),
        saved: Some(draft.path().join(CHECKPOINT)),
    };
    let definitions = names.into_iter().map(|name| child(parent, name));
    let mut children = Vec::new();
    let making = async {
        make(home, definitions, &other, &mut children).await?;
        if mode == Mode::Detached {
            for child in &children {
                child.release().await?;
            }
        }
        Ok(())
    };
    let made = making.await;
    match made {
        Ok(()) => Ok(children),
        Err(error) => {
            take_back(home, children).await;
            Err(error)
        }
    }
}

/// Puts the children into `children`, started as many at once as there are processors. All of them are
/// kept at once: those of a process that dies before go with it.
async fn make(
    home: &Home,
    definitions: impl Iterator<Item = SandboxConfig>,
    other: &Other,
    children: &mut Vec<Sandbox>,
) -> MicrosandboxResult<()> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    let starts = definitions.map(|child| create::create_unkept(child, other.clone().into()));
    let mut starts = stream::iter(starts).buffered(at_once);
    let mut ids: Vec<SandboxId> = Vec::new();
    let mut failed = None;
    // To the end, so that no child of a fork that fails is still coming when the others are taken back.
    while let Some(started) = starts.next().await {
        match started {
            Ok((child, id)) => {
                children.push(child);
                ids.push(id);
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let Some(error) = failed {
        return Err(error);
    }
    step::reached("fork.children");
    home.catalogue().await?.keep_sandboxes(&ids).await?;
    step::reached("fork.kept");
    Ok(())
}

/// The definition of a child: its parent's under another name, which is the machine's, too.
fn child(parent: &SandboxConfig, name: String) -> SandboxConfig {
    SandboxConfig {
        name,
        hostname: None,
        ephemeral: false,
        snapshot: None,
        replace_existing: false,
        ..parent.clone()
    }
}

/// Removes the children that there are already.
async fn take_back(home: &Home, children: Vec<Sandbox>) {
    for child in children {
        let removed = async {
            child.kill().await?;
            match Sandbox::remove(child.name()).await {
                // One that was not kept yet.
                Err(MicrosandboxError::SandboxNotFound(name)) => {
                    SandboxHandle::clear_away(home, &name).await
                }
                removed => removed,
            }
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, sandbox = child.name(), "a child stays");
        }
    }
}

impl From<Other> for Origin {
    fn from(other: Other) -> Self {
        Self::Other(Box::new(other))
    }
}
