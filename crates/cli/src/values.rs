//! Values of options: text from the command line into what the facade takes.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use microsandbox::{Mebibytes, Rlimit, RlimitResource};

/// A `KEY=VALUE` pair; `KEY` alone takes the value from msb's own environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variable {
    key: String,
    value: Option<String>,
}

impl Variable {
    /// Key and value; `None` when there is no such variable to take the value from.
    pub(crate) fn resolve(self) -> Option<(String, String)> {
        let value = self.value.or_else(|| microsandbox::env::read_text(&self.key))?;
        Some((self.key, value))
    }
}

/// Reads a variable of the environment.
pub(crate) fn variable(text: &str) -> Result<Variable, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    if key.is_empty() {
        return Err("expected NAME=VALUE".into());
    }
    Ok(Variable { key: key.to_owned(), value })
}

/// Reads a label, `KEY=VALUE`; a key alone has an empty value.
pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("expected KEY=VALUE".into());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Reads an amount of memory: MiB, or with a unit `M`, `MiB`, `G`, `GiB`.
pub(crate) fn memory(text: &str) -> Result<Mebibytes, String> {
    let expected = || "expected a number of MiB, or one with a unit: 512M, 2G".to_owned();
    let (digits, unit) = split_unit(text);
    let number: u32 = digits.parse().map_err(|_| expected())?;
    let mebibytes = match unit.to_ascii_lowercase().as_str() {
        "" | "m" | "mb" | "mib" => Some(number),
        "g" | "gb" | "gib" => number.checked_mul(1024),
        _ => None,
    };
    mebibytes.map(Mebibytes).ok_or_else(expected)
}

/// Reads a limit of each process: `nofile=1024`, `nofile=1024:4096`, `core=unlimited`.
pub(crate) fn rlimit(text: &str) -> Result<Rlimit, String> {
    let expected = || "expected NAME=LIMIT or NAME=SOFT:HARD, such as nofile=1024:4096".to_owned();
    let (name, limits) = text.split_once('=').ok_or_else(expected)?;
    let resource = RlimitResource::try_from(name)?;
    let limit = |text: &str| match text {
        "unlimited" | "-1" => Ok(u64::MAX),
        number => number.parse().map_err(|_| expected()),
    };
    let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
    let (soft, hard) = (limit(soft)?, limit(hard)?);
    if soft > hard {
        return Err(format!("the soft limit {soft} is above the hard one, {hard}"));
    }
    Ok(Rlimit { resource, soft, hard })
}

/// Reads a moment: RFC 3339, or a time that lies so far back.
pub(crate) fn since(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(time.to_utc());
    }
    let expected = || "expected a time such as 2026-01-02T03:04:05Z, or 10m for that long ago";
    let ago = duration(text).ok().and_then(|ago| TimeDelta::from_std(ago).ok());
    ago.and_then(|ago| Utc::now().checked_sub_signed(ago)).ok_or_else(|| expected().to_owned())
}

/// Reads a time: seconds, or with a unit `ms`, `s`, `m`, `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected =
        || "expected a number of seconds, or one with a unit: 500ms, 2s, 5m, 1h".to_owned();
    let (digits, unit) = split_unit(text);
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let millis = match unit {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(expected)
}

/// Reads a time as whole seconds, the part of a second rounded up.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    Ok(duration(text)?.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX))
}

/// Reads an amount of disk: bytes, or with a unit `K`, `M`, `G`, `T` of powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let expected = || "expected a number of bytes, or one with a unit: 500M, 20G".to_owned();
    let (digits, unit) = split_unit(text);
    let number: u64 = digits.parse().map_err(|_| expected())?;
    let factor = match unit.to_ascii_lowercase().trim_end_matches("ib").trim_end_matches('b') {
        "" => Some(1),
        "k" => Some(1 << 10),
        "m" => Some(1 << 20),
        "g" => Some(1 << 30),
        "t" => Some(1_u64 << 40),
        _ => None,
    };
    factor.and_then(|factor| number.checked_mul(factor)).ok_or_else(expected)
}

fn split_unit(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_mebibytes_unless_a_unit_says_otherwise() {
        for (text, mebibytes) in [
            ("512", Some(512)),
            ("512M", Some(512)),
            ("512MiB", Some(512)),
            ("2G", Some(2048)),
            ("2gb", Some(2048)),
            ("", None),
            ("G", None),
            ("-1", None),
            ("1.5G", None),
            ("512K", None),
            ("4194304G", None),
        ] {
            assert_eq!(memory(text).ok().map(|memory| memory.0), mebibytes, "{text:?}");
        }
    }

    #[test]
    fn size_is_bytes_unless_a_unit_says_otherwise() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4K", Some(4096)),
            ("20GiB", Some(20 << 30)),
            ("1tb", Some(1 << 40)),
            ("16777216T", None),
            ("1.5G", None),
            ("G", None),
            ("5X", None),
        ] {
            assert_eq!(size(text).ok(), bytes, "{text:?}");
        }
    }

    #[test]
    fn duration_is_seconds_unless_a_unit_says_otherwise() {
        for (text, millis) in [
            ("2", Some(2000)),
            ("2s", Some(2000)),
            ("500ms", Some(500)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("0", Some(0)),
            ("", None),
            ("s", None),
            ("2d", None),
            ("18446744073709551615h", None),
        ] {
            let expected = millis.map(Duration::from_millis);
            assert_eq!(duration(text).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        let (key, value) = variable("A=b=c").unwrap().resolve().unwrap();
        assert_eq!((key.as_str(), value.as_str()), ("A", "b=c"));
        assert_eq!(variable("MSB_TEST_NO_SUCH_VARIABLE").unwrap().resolve(), None);
        assert!(variable("=x").is_err());
        assert_eq!(label("team").unwrap(), ("team".into(), String::new()));
        assert!(label("=x").is_err());
    }
}
