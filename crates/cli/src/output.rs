//! What commands say on standard output: lines, tables and JSON.

use std::{
    fmt,
    io::{self, Write},
};

use anyhow::Context as _;
use clap::ValueEnum;
use microsandbox::{Reference, image::Image};
use serde::Serialize;

pub(crate) mod copy;
pub(crate) mod pull;
pub(crate) mod table;

/// Nobody reads our output any more: an end that needs no words.
#[derive(Debug)]
pub(crate) struct OutputClosed;

impl fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("write the output: nobody reads it any more")
    }
}

impl std::error::Error for OutputClosed {}

/// How to write what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; may change
    Table,
    /// For programs; see docs/cli.md
    Json,
}

/// Writes one line.
pub(crate) fn line(text: impl fmt::Display) -> anyhow::Result<()> {
    written(writeln!(io::stdout().lock(), "{text}"))
}

/// Writes a value as JSON, indented, with a line end.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value).context("write the output as JSON")?;
    line(text)
}

/// Makes the error of a write to standard output one that `report` knows.
pub(crate) fn written<T>(result: io::Result<T>) -> anyhow::Result<T> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => OutputClosed.into(),
        _ => anyhow::Error::new(error).context("write the output"),
    })
}

/// The line that says what a name stands for.
pub(crate) fn name_and_digest(name: &str, image: &Image) -> String {
    format!("{} {}", familiar(name), image.digest())
}

/// The shortest form of a name.
pub(crate) fn familiar(name: &str) -> String {
    let parsed: Option<Reference> = name.parse().ok();
    parsed.map_or_else(|| name.to_owned(), |reference| reference.familiar())
}

/// A number of bytes as people read it.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_four_digits_before_the_point() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1.0 MiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
