//! Names: which are legal, and what a sandbox's machine is called.

use std::collections::BTreeMap;

use crate::{MicrosandboxError, MicrosandboxResult};

/// Longest name of a sandbox, UTF-8 bytes. It is a directory name; some room is left below 255.
pub const MAX_SANDBOX_NAME_BYTES: usize = 128;

/// Longest host name, bytes: `__NEW_UTS_LEN` of Linux (`include/uapi/linux/utsname.h`).
pub const MAX_HOSTNAME_BYTES: usize = 64;

const RESERVED_LABEL_PREFIXES: [&str; 3] = ["sandbox.", "microsandbox.", "service."];

fn invalid(message: String) -> MicrosandboxError {
    MicrosandboxError::InvalidConfig(message)
}

/// Says whether a sandbox may have this name.
///
/// 1 to 128 bytes of UTF-8; no `/`, no control characters, no `.` or `-` in front: the name is a
/// directory and an argument of commands.
///
/// # Errors
/// [`MicrosandboxError::InvalidConfig`] naming the rule.
pub fn validate_sandbox_name(name: &str) -> MicrosandboxResult<()> {
    if name.is_empty() {
        return Err(invalid("sandbox name must not be empty".into()));
    }
    if name.len() > MAX_SANDBOX_NAME_BYTES {
        let len = name.len();
        return Err(invalid(format!(
            "sandbox name is too long: {len} bytes (max {MAX_SANDBOX_NAME_BYTES})"
        )));
    }
    if name.starts_with(['.', '-']) || name.contains('/') || name.contains(char::is_control) {
        return Err(invalid(format!(
            "sandbox name {name:?} must not begin with '.' or '-' nor contain '/' or control \
             characters"
        )));
    }
    Ok(())
}

pub(crate) fn validate_hostname(hostname: Option<&str>) -> MicrosandboxResult<()> {
    match hostname {
        Some("") => Err(invalid("hostname must not be empty".into())),
        Some(name) if name.len() > MAX_HOSTNAME_BYTES => Err(invalid(format!(
            "hostname is too long: {} bytes (max {MAX_HOSTNAME_BYTES})",
            name.len()
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn validate_labels(labels: &BTreeMap<String, String>) -> MicrosandboxResult<()> {
    for key in labels.keys() {
        if key.is_empty() {
            return Err(invalid("label key must not be empty".into()));
        }
        if let Some(prefix) =
            RESERVED_LABEL_PREFIXES.iter().find(|prefix| key.starts_with(**prefix))
        {
            return Err(invalid(format!("label key '{key}' uses reserved prefix '{prefix}'")));
        }
    }
    Ok(())
}

pub(crate) fn validate_env(env: &[(String, String)]) -> MicrosandboxResult<()> {
    for (key, value) in env {
        if key.starts_with("MSB_") {
            return Err(invalid(format!(
                "environment variable {key:?} uses the reserved MSB_ prefix"
            )));
        }
        validate_variable(key, value)?;
    }
    Ok(())
}

/// Says whether a process can have this variable.
pub(crate) fn validate_variable(key: &str, value: &str) -> MicrosandboxResult<()> {
    if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
        return Err(invalid(format!("environment variable {key:?} is not a NAME=VALUE pair")));
    }
    Ok(())
}

/// The host name of a sandbox that was given none: its own, shortened with a hash where it must be.
pub(crate) fn hostname_from_sandbox_name(name: &str) -> String {
    if name.len() <= MAX_HOSTNAME_BYTES {
        return name.to_owned();
    }
    // FNV-1a: stable for ever, and unlike names of one prefix stay unlike.
    let hash = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let suffix = format!("-{hash:08x}");
    let mut cut = MAX_HOSTNAME_BYTES - suffix.len();
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}{suffix}", &name[..cut])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_be_paths_or_options_are_refused() {
        let long = "a".repeat(MAX_SANDBOX_NAME_BYTES + 1);
        for (name, legal) in [
            ("a", true),
            ("web-1.test_x", true),
            ("é", true),
            ("", false),
            (".", false),
            ("..", false),
            ("-rf", false),
            ("a/b", false),
            ("a\nb", false),
            (&long, false),
            (&long[1..], true),
        ] {
            assert_eq!(validate_sandbox_name(name).is_ok(), legal, "{name:?}");
        }
    }

    #[test]
    fn long_names_become_distinct_hostnames_of_64_bytes() {
        assert_eq!(hostname_from_sandbox_name("short-name"), "short-name");
        let a = "a".repeat(MAX_SANDBOX_NAME_BYTES);
        let b = format!("{}b", &a[1..]);
        let (derived, other) = (hostname_from_sandbox_name(&a), hostname_from_sandbox_name(&b));
        assert_eq!(derived.len(), MAX_HOSTNAME_BYTES);
        assert_ne!(derived, other);
        assert_eq!(derived.as_bytes()[MAX_HOSTNAME_BYTES - 9], b'-');
        assert!(hostname_from_sandbox_name(&"é".repeat(64)).len() <= MAX_HOSTNAME_BYTES);
    }

    #[test]
    fn messages_name_the_rule() {
        let check = |result: MicrosandboxResult<()>, message: &str| {
            assert_eq!(result.unwrap_err().to_string(), message);
        };
        check(validate_hostname(Some("")), "invalid config: hostname must not be empty");
        check(
            validate_hostname(Some(&"y".repeat(65))),
            "invalid config: hostname is too long: 65 bytes (max 64)",
        );
        let label = BTreeMap::from([("sandbox.x".to_owned(), String::new())]);
        check(
            validate_labels(&label),
            "invalid config: label key 'sandbox.x' uses reserved prefix 'sandbox.'",
        );
        check(
            validate_env(&[("MSB_X".into(), String::new())]),
            "invalid config: environment variable \"MSB_X\" uses the reserved MSB_ prefix",
        );
    }
}
