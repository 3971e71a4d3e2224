//! Blocking work beside an async runtime.

use std::thread;

use tokio::sync::oneshot;

use crate::Error;

/// Runs `work` on a thread of its own and waits for it.
///
/// Not the runtime's blocking pool: a runtime that is shut down would wait for a thread that waits for another
/// process. A dropped future leaves the thread to finish by itself; its result is dropped with all it owns.
pub(crate) async fn blocking<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (sender, receiver) = oneshot::channel();
    let thread = thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            // Nobody waits any more: the result undoes itself.
            let _ = sender.send(work());
        })
        .map_err(|source| Error::WriteStore { path: name.into(), source })?;
    match receiver.await {
        Ok(result) => result,
        Err(_) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("a thread that does not panic sends its result"),
        },
    }
}
