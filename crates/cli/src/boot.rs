//! Bringing a sandbox up with the user looking on: progress, interruption, and what it runs on.

use microsandbox::{
    Accel, MicrosandboxResult, PullProgressHandle, RunInfo, Sandbox, SandboxConfig, SandboxHandle,
};
use tokio::task::JoinHandle;

use crate::{
    interrupt::{Interrupt, Interrupts},
    output::pull::PullView,
    report,
};

/// Whose end is the sandbox's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// That of this process.
    Attached,
    /// Nobody's.
    Detached,
}

/// Creates a sandbox and starts it.
///
/// When a signal comes first, everything is undone before the [`Interrupt`] is returned as the
/// error; a second one does not wait for that.
pub(crate) async fn create(
    config: SandboxConfig,
    life: Life,
    quiet: bool,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Sandbox> {
    let creation = match life {
        Life::Attached => Sandbox::create_with_pull_progress(config),
        Life::Detached => Sandbox::create_detached_with_pull_progress(config),
    };
    follow(creation, quiet, interrupts).await
}

/// Defines a sandbox that is started later; interrupted as [`create`] is.
pub(crate) async fn define(
    config: SandboxConfig,
    quiet: bool,
    interrupts: &mut Interrupts,
) -> anyhow::Result<SandboxHandle> {
    follow(Sandbox::define_with_pull_progress(config), quiet, interrupts).await
}

async fn follow<T>(
    (mut progress, mut task): (PullProgressHandle, JoinHandle<MicrosandboxResult<T>>),
    quiet: bool,
    interrupts: &mut Interrupts,
) -> anyhow::Result<T> {
    let view = PullView::new(quiet);
    let interrupt: Interrupt = loop {
        tokio::select! {
            Some(event) = progress.recv() => view.show(&event),
            created = &mut task => return Ok(created??),
            interrupt = interrupts.next() => break interrupt,
        }
    };
    drop(view);
    task.abort();
    // The channel closes when the creation has undone what it did.
    let undone = async { while progress.recv().await.is_some() {} };
    tokio::select! {
        () = undone => {}
        _ = interrupts.next() => {}
    }
    Err(interrupt.into())
}

/// Starts a sandbox that lives on. Tells that it is emulated, once, and is quiet from then on.
pub(crate) async fn start(sandbox: &SandboxHandle, quiet: &mut bool) -> anyhow::Result<()> {
    run_of(&sandbox.start_detached().await?, *quiet).await?;
    *quiet = true;
    Ok(())
}

/// The run that `sandbox` is in; tells, once, when it is emulated or not confined.
pub(crate) async fn run_of(sandbox: &Sandbox, quiet: bool) -> anyhow::Result<Option<RunInfo>> {
    let run = Sandbox::get(sandbox.name()).await?.last_run()?;
    let confinement = run.as_ref().and_then(|run| run.confinement.as_ref());
    if !quiet && confinement.is_some_and(|confinement| confinement.vmm.layers.is_empty()) {
        report::note(
            "the sandbox's processes are not confined: see MSB_CONFINEMENT and `msb doctor`",
        );
    }
    if !quiet && run.as_ref().is_some_and(|run| run.accel == Accel::Tcg) {
        report::note("no usable KVM: running in software emulation (slower); see `msb doctor`");
    }
    Ok(run)
}
