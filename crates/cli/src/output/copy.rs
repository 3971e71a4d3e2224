//! Progress of a copy: a bar on a terminal, once the copy has taken longer than a moment.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A copy that is done by then needs no bar.
const MOMENT: Duration = Duration::from_millis(700);

/// Shows progress until it is dropped, and leaves no bar behind.
#[derive(Debug)]
pub(crate) struct CopyView {
    bar: ProgressBar,
    shown: bool,
}

impl CopyView {
    /// The view that suits standard error, or none.
    pub(crate) fn new(quiet: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        Self { bar, shown: !quiet && io::stderr().is_terminal() }
    }

    /// How many bytes there will be, where that is known.
    pub(crate) fn expect(&self, bytes: Option<u64>) {
        let template = match bytes {
            Some(_) => "{bar:30} {bytes:>10} / {total_bytes:<10} {bytes_per_sec} {eta}",
            None => "{spinner} {bytes:>10} {bytes_per_sec}",
        };
        let style = ProgressStyle::with_template(template).expect("the templates are constants");
        self.bar.set_style(style);
        if let Some(bytes) = bytes {
            self.bar.set_length(bytes);
        }
    }

    /// Counts bytes that have moved.
    pub(crate) fn counter(&self) -> impl Fn(u64) + Send + Sync + 'static {
        let (bar, shown, begun) = (self.bar.clone(), self.shown, Instant::now());
        move |bytes| {
            bar.inc(bytes);
            if shown && bar.is_hidden() && begun.elapsed() > MOMENT {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
        }
    }
}

impl Drop for CopyView {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
