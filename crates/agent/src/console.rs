//! The kernel console: for what goes wrong where no host listens yet, or any more.

use std::error::Error;
use std::io::{self, Write};

/// Writes one line. Standard error of PID 1 is `/dev/console`.
pub(crate) fn say(line: &str) {
    // Without a console there is nobody to tell.
    let _ = writeln!(io::stderr(), "agentd: {line}");
}

/// Writes an error with what caused it.
pub(crate) fn report(error: &dyn Error) {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        source = cause.source();
    }
    say(&line);
}
