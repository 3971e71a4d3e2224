//! Running other programs, with failures that name the program and show its last words.
//!
//! Three ways, one for each purpose: [`Tool::run`] lets the program talk to the user,
//! [`Tool::output`] takes what it prints, [`Tool::run_logged`] writes a long build to a file.

use std::{
    collections::VecDeque,
    ffi::OsStr,
    fs::File,
    io::{BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail};

use crate::{env, terminal::Progress};

/// Lines of a log that a failure repeats.
const LAST_WORDS: usize = 20;

/// A program about to be run.
#[derive(Debug)]
pub(crate) struct Tool {
    command: Command,
}

impl Tool {
    /// The program of this name, found on `PATH`.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        Self { command }
    }

    /// The cargo that runs this program, as if it had been called by hand.
    ///
    /// `cargo run` describes the package it runs in variables. Some build scripts (ring's) ask to be
    /// run again when those change, and with them a third of the dependencies would be built anew.
    pub(crate) fn cargo() -> Self {
        let mut tool = Self::new(env::cargo());
        for name in env::of_this_package() {
            tool.command.env_remove(name);
        }
        tool
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds several arguments.
    pub(crate) fn args<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the program's environment.
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Runs in `directory`.
    pub(crate) fn in_dir(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Runs the program, its output going to the user.
    pub(crate) fn run(mut self) -> Result<()> {
        let status = self.command.status().with_context(|| self.cannot_start())?;
        self.judge(status)
    }

    /// Runs the program and says whether it succeeded; its output is dropped.
    pub(crate) fn succeeds(mut self) -> Result<bool> {
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        Ok(self.command.status().with_context(|| self.cannot_start())?.success())
    }

    /// Runs the program and takes its standard output, without the last newline.
    pub(crate) fn output(mut self) -> Result<String> {
        let output = self.command.output().with_context(|| self.cannot_start())?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`{}` ended with {}: {}", self.line(), output.status, words.trim_end());
        }
        let text = String::from_utf8(output.stdout)
            .with_context(|| format!("`{}` printed something other than UTF-8", self.line()))?;
        Ok(text.trim_end().to_owned())
    }

    /// Runs the program with both outputs in the file `log`, showing how many lines there were.
    ///
    /// A failure repeats the last lines and names the file.
    pub(crate) fn run_logged(mut self, log: &Path, counted: &'static str) -> Result<()> {
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        self.command.stdout(writer.try_clone().context("copy a pipe end")?).stderr(writer);
        let mut child = self.command.spawn().with_context(|| self.cannot_start())?;
        let line = self.line();
        // The command keeps its copies of the writing end; while they live the pipe never ends.
        drop(self);

        let mut last = VecDeque::with_capacity(LAST_WORDS);
        let copied = copy_lines(BufReader::new(reader), log, counted, &mut last);
        let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
        copied?;
        if !status.success() {
            let last = Vec::from(last).join("\n");
            bail!("`{line}` ended with {status}; all of it is in {}\n{last}", log.display());
        }
        Ok(())
    }

    fn judge(&self, status: ExitStatus) -> Result<()> {
        if !status.success() {
            bail!("`{}` ended with {status}", self.line());
        }
        Ok(())
    }

    fn cannot_start(&self) -> String {
        format!("start `{}`", self.line())
    }

    fn line(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }
}

/// Where `PATH` has the program `name`.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    env::path().into_iter().map(|folder| folder.join(name)).find(|path| path.is_file())
}

fn copy_lines(
    from: impl std::io::BufRead,
    log: &Path,
    counted: &'static str,
    last: &mut VecDeque<String>,
) -> Result<()> {
    let mut file = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut progress = Progress::start(counted);
    for (index, line) in from.split(b'\n').enumerate() {
        let line = line.context("read what the program prints")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(file, "{line}").with_context(|| format!("write {}", log.display()))?;
        if last.len() == LAST_WORDS {
            last.pop_front();
        }
        last.push_back(line.into_owned());
        progress.show(index + 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_the_program_and_repeats_its_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "echo one; echo two >&2; exit 3";
        let error = Tool::new("sh").args(["-c", script]).run_logged(&log, "lines").unwrap_err();
        let text = error.to_string();
        for part in ["sh -c", "exit status: 3", "one", "two", "log"] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
        assert_eq!(std::fs::read_to_string(log).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn unknown_program_is_named() {
        let error = Tool::new("no-such-program-here").run().unwrap_err();
        assert!(error.to_string().contains("no-such-program-here"), "{error}");
    }
}
