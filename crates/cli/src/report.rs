//! How msb ends: the one place where an error becomes words and an exit code.
//!
//! ```text
//! msb: <what failed>: <why>: <why that>
//! hint: <what to do about it>
//! ```

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
    process::ExitCode,
    sync::OnceLock,
};

use clap::ValueEnum;
use microsandbox::{ExitStatus, MicrosandboxError};
use serde_json::json;

use crate::{
    interrupt::Interrupt,
    output::{self, OutputClosed},
};

/// Exit code of msb's own failures.
const FAILED: u8 = 125;

/// Exit code when the command's time was up, as `timeout(1)` has it.
const TIMED_OUT: u8 = 124;

/// Exit code when nobody reads the output any more: 128 and the number of `SIGPIPE`.
const OUTPUT_CLOSED: u8 = 141;

/// Lines of the guest's console that are shown when it did not boot.
const CONSOLE_LINES: usize = 15;

/// Tells what failed and gives the exit code for it.
pub(crate) fn failure(error: &anyhow::Error) -> ExitCode {
    if error.is::<OutputClosed>() {
        return ExitCode::from(OUTPUT_CLOSED);
    }
    if let Some(interrupt) = error.downcast_ref::<Interrupt>() {
        return ExitCode::from(interrupt.exit_code());
    }
    if let Some(MicrosandboxError::AttachInterrupted { signal }) = facade_error(error) {
        return ExitCode::from(u8::try_from(128 + signal).unwrap_or(FAILED));
    }
    tell_failure(error);
    ExitCode::from(exit_code(error))
}

/// Tells a failure after which the work goes on.
pub(crate) fn tell_failure(error: &anyhow::Error) {
    match FORMAT.get() {
        Some(ErrorFormat::Json) => tell(&describe_as_json(error)),
        _ => tell(&describe(error)),
    }
}

/// Tells clap's message. Help and version are no failures.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // Nobody there to read it: nothing more to say.
    let _unread = error.print();
    ExitCode::from(if error.use_stderr() { FAILED } else { 0 })
}

/// Tells the user something that is no failure.
pub(crate) fn note(text: impl fmt::Display) {
    tell(&format!("msb: {text}\n"));
}

/// Writes one line for programs to read from standard error.
pub(crate) fn data(line: &str) {
    tell(&format!("{line}\n"));
}

/// The exit code for a command that ended, 0 for one that the user detached from.
pub(crate) fn status(status: Option<ExitStatus>) -> ExitCode {
    let Some(status) = status else { return ExitCode::SUCCESS };
    match status.memory_limit_bytes {
        Some(limit) => note(format_args!(
            "the command went beyond its {} of memory and a process of it was killed; see --memory",
            output::size(limit)
        )),
        None if status.out_of_memory => note(
            "the guest ran out of memory and killed a process of this command; \
             give the sandbox more with --memory",
        ),
        None => {}
    }
    ExitCode::from(u8::try_from(status.code).unwrap_or(FAILED))
}

fn tell(text: &str) {
    // There is no better place to say that standard error is closed.
    let _unread = io::stderr().lock().write_all(text.as_bytes());
}

/// How failures are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum ErrorFormat {
    /// For people
    #[default]
    Text,
    /// For programs, one line; see docs/cli.md
    Json,
}

/// Said once on the command line, needed wherever something fails.
static FORMAT: OnceLock<ErrorFormat> = OnceLock::new();

/// Sets how failures are written from now on.
pub(crate) fn write_failures_as(format: ErrorFormat) {
    // Set by `main` alone, once.
    let _set_before = FORMAT.set(format);
}

fn describe_as_json(error: &anyhow::Error) -> String {
    let facade = facade_error(error);
    let boot = match facade {
        Some(MicrosandboxError::BootStart { err, .. }) => Some(err),
        _ => None,
    };
    let told = json!({
        "error": {
            "kind": facade.map_or("other", MicrosandboxError::kind),
            "message": message(error),
            "hint": facade.and_then(MicrosandboxError::hint),
            "exit_code": exit_code(error),
            "stage": boot.map(|err| err.stage.name()),
            "errno": boot.and_then(|err| err.errno),
            "console_tail": boot.map(|err| &err.console_tail),
        }
    });
    format!("{told}\n")
}

/// What failed and why, as one line.
fn message(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some libraries repeat the cause in their own message.
        if told.ends_with(&cause) {
            continue;
        }
        if !told.is_empty() {
            told.push_str(": ");
        }
        told.push_str(&cause);
    }
    // Whatever a registry or a kernel put into its message.
    told.replace(char::is_control, " ")
}

fn describe(error: &anyhow::Error) -> String {
    let mut text = format!("msb: {}\n", message(error));
    let facade = facade_error(error);
    if let Some(hint) = facade.and_then(MicrosandboxError::hint) {
        let _infallible = writeln!(text, "hint: {hint}");
    }
    if let Some(MicrosandboxError::BootStart { err, .. }) = facade {
        text.push_str(&last_lines(&err.console_tail));
    }
    text
}

fn last_lines(console: &str) -> String {
    let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
    let shown = &lines[lines.len().saturating_sub(CONSOLE_LINES)..];
    shown.iter().map(|line| format!("console: {}\n", line.trim_end())).collect()
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match facade_error(error) {
        Some(MicrosandboxError::ExecFailed(failed)) => {
            u8::try_from(failed.shell_code()).unwrap_or(FAILED)
        }
        Some(MicrosandboxError::ExecTimeout(_)) => TIMED_OUT,
        _ => FAILED,
    }
}

fn facade_error(error: &anyhow::Error) -> Option<&MicrosandboxError> {
    error.chain().find_map(|cause| cause.downcast_ref())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use anyhow::Context as _;
    use microsandbox::{BootError, BootErrorStage};

    use super::*;

    fn check(error: &anyhow::Error, text: &str, code: u8) {
        assert_eq!((describe(error).as_str(), exit_code(error)), (text, code));
    }

    #[test]
    fn error_is_one_line_with_its_causes_and_a_hint() {
        let missing = MicrosandboxError::SandboxNotFound("a".into());
        check(
            &anyhow::Error::new(missing).context("stop a"),
            "msb: stop a: no sandbox is named 'a'\nhint: `msb ls` shows the sandboxes there are\n",
            125,
        );
        check(&anyhow::anyhow!("two\nlines"), "msb: two lines\n", 125);
        let repeated = anyhow::anyhow!("cause");
        check(
            &Err::<(), _>(repeated).context("deed: cause").unwrap_err(),
            "msb: deed: cause\n",
            125,
        );
    }

    #[test]
    fn failed_boot_shows_the_end_of_the_console() {
        let console: String = (0..40).map(|line| format!("line {line}\r\n\n")).collect();
        let err = BootError {
            t: String::new(),
            stage: BootErrorStage::Kernel,
            message: "booting the guest kernel: it stopped".into(),
            errno: Some(5),
            console_tail: console,
            hint: Some("try".into()),
        };
        let error = MicrosandboxError::BootStart { name: "a".into(), err: Box::new(err) }.into();
        let told: serde_json::Value = serde_json::from_str(&describe_as_json(&error)).unwrap();
        assert_eq!(
            (&told["error"]["stage"], &told["error"]["errno"]),
            (&"kernel".into(), &5.into())
        );
        let text = describe(&error);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "msb: sandbox 'a' did not start: booting the guest kernel: it stopped"
        );
        assert_eq!(lines[1], "hint: try");
        assert_eq!(lines[2], "console: line 25");
        assert_eq!(lines[16..], ["console: line 39"]);
    }

    #[test]
    fn programs_read_failures_as_json() {
        let missing = MicrosandboxError::SandboxNotFound("a".into());
        let told = describe_as_json(&anyhow::Error::new(missing).context("stop a"));
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        assert_eq!(told["error"]["kind"], "sandbox_not_found");
        assert_eq!(told["error"]["message"], "stop a: no sandbox is named 'a'");
        assert_eq!(told["error"]["exit_code"], 125);
        assert_eq!(told["error"]["console_tail"], serde_json::Value::Null);
    }

    #[test]
    fn timeout_has_the_code_of_timeout_1() {
        let error = MicrosandboxError::ExecTimeout(Duration::from_secs(2));
        check(&error.into(), "msb: the command did not end within 2s\n", 124);
    }
}
