//! Forking: a running sandbox becomes several, in one pause.

use microsandbox_runtime::SandboxDir;

use super::{CHECKPOINT, Origin, UPPER, restore::Other, take::Saved};
use crate::{
    MicrosandboxResult, Sandbox, SandboxConfig,
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
    let other = Other {
        name: parent.name.clone(),
        definition: parent.clone(),
        upper: draft.path().join(UPPER),
        saved: Some(draft.path().join(CHECKPOINT)),
    };
    let mut children: Vec<Sandbox> = Vec::new();
    for name in names {
        match create::create_from(child(parent, name), Mode::Attached, other.clone().into()).await {
            Ok(child) => children.push(child),
            Err(error) => {
                take_back(children).await;
                return Err(error);
            }
        }
    }
    if mode == Mode::Detached {
        for child in &children {
            child.release().await?;
        }
    }
    Ok(children)
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
async fn take_back(children: Vec<Sandbox>) {
    for child in children {
        let removed = async {
            child.kill().await?;
            Sandbox::remove(child.name()).await
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
