//! A command that is timed: when its first output came, and when it had ended.

use std::{
    io::Read as _,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// How a command went that succeeded.
#[derive(Debug)]
pub(super) struct Timed {
    /// Until the first byte of its standard output; until its end where there was none.
    pub(super) first: Duration,
    /// Until its end.
    pub(super) whole: Duration,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Timed {
    /// Runs the command without input.
    pub(super) fn of(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut stderr = stderr.context("take the command's messages")?;
        let messages = thread::spawn(move || {
            let mut text = Vec::new();
            stderr.read_to_end(&mut text).map(|_| text)
        });
        let mut output = vec![0];
        let mut stdout = stdout.context("take the command's output")?;
        let read = stdout.read(&mut output).context("read the command's output")?;
        output.truncate(read);
        let first = begun.elapsed();
        stdout.read_to_end(&mut output).context("read the command's output")?;
        let status = child.wait().context("wait for the command")?;
        let whole = begun.elapsed();
        let messages = messages.join().expect("a thread that only reads does not panic");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let stderr = text(messages.context("read the command's messages")?);
        ensure!(status.success(), "{command:?} ended with {status}: {}", stderr.trim_end());
        Ok(Self { first, whole, stdout: text(output), stderr })
    }
}

/// Milliseconds, as reports count them.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
