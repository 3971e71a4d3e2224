//! What the user sees: one line a step on standard error, results on standard output.
//!
//! A line that cannot be written is not worth failing a build for, so write errors end here.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// How often a progress line is renewed where there is no terminal to redraw.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);
/// The same for a terminal: fast enough to look alive, slow enough to cost nothing.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(100);

/// Announces a step: `==> text`.
pub(crate) fn step(text: impl Display) {
    error_line(format_args!("==> {text}"));
}

/// Says something about the step under way.
pub(crate) fn note(text: impl Display) {
    error_line(format_args!("    {text}"));
}

/// Prints a result.
pub(crate) fn result(text: impl Display) {
    writeln!(io::stdout(), "{text}").ok();
}

/// Prints an error with its causes.
pub(crate) fn failure(error: &anyhow::Error) {
    error_line(format_args!("error: {error}"));
    for cause in error.chain().skip(1) {
        error_line(format_args!("  because: {cause}"));
    }
}

fn error_line(text: impl Display) {
    writeln!(io::stderr(), "{text}").ok();
}

/// A line that counts while something long runs.
///
/// On a terminal it is redrawn in place; elsewhere a line appears every half minute, so that a
/// log of a build server shows life without being flooded.
#[derive(Debug)]
pub(crate) struct Progress {
    label: &'static str,
    started: Instant,
    drawn: Option<Instant>,
    on_terminal: bool,
}

impl Progress {
    /// Starts counting; `label` names what is counted.
    pub(crate) fn start(label: &'static str) -> Self {
        let on_terminal = io::stderr().is_terminal();
        Self { label, started: Instant::now(), drawn: None, on_terminal }
    }

    /// Shows `count`, if the last line is old enough.
    pub(crate) fn show(&mut self, count: usize) {
        let interval = if self.on_terminal { TERMINAL_INTERVAL } else { PLAIN_INTERVAL };
        if self.drawn.unwrap_or(self.started).elapsed() < interval {
            return;
        }
        self.drawn = Some(Instant::now());
        let seconds = self.started.elapsed().as_secs();
        let (start, end) = if self.on_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        write!(io::stderr(), "{start}    {count} {}, {seconds} s{end}", self.label).ok();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.on_terminal && self.drawn.is_some() {
            write!(io::stderr(), "\r\x1b[K").ok();
        }
    }
}
