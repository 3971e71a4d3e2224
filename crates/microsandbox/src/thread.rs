//! Blocking work beside an async runtime.

use std::thread;

use microsandbox_runtime::Error;
use tokio::sync::oneshot;

use crate::{MicrosandboxError, MicrosandboxResult};

/// Runs `work` on a thread of its own and waits for it.
///
/// Not the runtime's blocking pool: a runtime that is shut down would wait for work that waits for
/// another process. Dropping the future leaves the thread to finish by itself.
pub(crate) async fn on_thread<T, E>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> MicrosandboxResult<T>
where
    T: Send + 'static,
    E: Into<MicrosandboxError> + Send + 'static,
{
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        // Nobody waits any more: the result goes, and undoes itself if it can.
        let _unwanted = sender.send(work());
    });
    let thread = thread.map_err(|source| Error::System { action: "start a thread", source })?;
    match receiver.await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("a thread that does not panic sends its result"),
        },
    }
}
