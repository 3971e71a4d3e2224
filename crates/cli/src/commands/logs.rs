//! `msb logs`: what a guest's console and its supervisor said, byte for byte.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::Context as _;
use clap::ValueEnum;
use microsandbox::{LogSource, Sandbox};

use crate::output;

/// Arguments of `msb logs`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the sandbox
    name: String,
    /// Which log
    #[arg(long, value_enum, default_value_t = Source::Kernel)]
    source: Source,
    /// Only the last lines, so many
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,
}

/// The logs there are.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Source {
    /// The guest's console
    Kernel,
    /// The supervisor and the VMM
    Runtime,
}

impl From<Source> for LogSource {
    fn from(source: Source) -> Self {
        match source {
            Source::Kernel => Self::Kernel,
            Source::Runtime => Self::Runtime,
        }
    }
}

/// Shows a log. One that was never written is empty.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let path = Sandbox::get(&args.name).await?.log_path(args.source.into());
    let Some(mut log) = open(&path).with_context(|| format!("open {}", path.display()))? else {
        return Ok(());
    };
    if let Some(lines) = args.tail {
        seek_to_tail(&mut log, lines).with_context(|| format!("read {}", path.display()))?;
    }
    output::written(io::copy(&mut log, &mut io::stdout().lock())).map(drop)
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

/// One step backwards through a log.
const STEP_BYTES: usize = 64 * 1024;

/// Places `log` where its last `lines` lines begin. A line end at the very end begins no line.
fn seek_to_tail(log: &mut (impl Read + Seek), lines: usize) -> io::Result<()> {
    let end = log.seek(SeekFrom::End(0))?;
    let mut to_pass = lines;
    let mut position = end;
    let mut step = vec![0; STEP_BYTES];
    while position > 0 {
        let len = position.min(STEP_BYTES as u64);
        position -= len;
        let step = &mut step[..usize::try_from(len).expect("at most one step")];
        log.seek(SeekFrom::Start(position))?;
        log.read_exact(step)?;
        for (offset, _) in step.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let line_start = position + offset as u64 + 1;
            if line_start == end {
                continue;
            }
            to_pass = to_pass.saturating_sub(1);
            if to_pass == 0 {
                log.seek(SeekFrom::Start(if lines == 0 { end } else { line_start }))?;
                return Ok(());
            }
        }
    }
    log.seek(SeekFrom::Start(if lines == 0 { end } else { 0 })).map(drop)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn tail_begins_at_the_line_asked_for() {
        let long = format!("{}\nlast\n", "x".repeat(3 * STEP_BYTES));
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 3, "a\nb\nc\n"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\nb\n", 0, ""),
            ("a", 0, ""),
            ("\n\n", 1, "\n"),
            ("", 5, ""),
            (&long, 1, "last\n"),
            (&long, 2, &long),
        ] {
            let mut log = Cursor::new(text.as_bytes());
            seek_to_tail(&mut log, lines).unwrap();
            let mut tail = String::new();
            log.read_to_string(&mut tail).unwrap();
            assert_eq!(tail, expected, "{lines} of {} bytes", text.len());
        }
    }
}
