//! From the begin of `msb create` to the first output of a command, in Debian with Python; beside gVisor.

use anyhow::{Result, ensure};

use super::{Starts, WAYS, Way, gvisor::Gvisor};
use crate::{
    bench::{
        home::DEBIAN,
        report::Report,
        timed::{Timed, ms},
    },
    terminal,
};

const SANDBOX: &str = "bench-output";

/// A command, and what it prints.
const COMMANDS: [(&str, &[&str], &str); 2] =
    [("echo", &["/bin/echo", "hi"], "hi\n"), ("python", &["python3", "-c", "print(1)"], "1\n")];

/// Every command in every way, `runs` times in turn; one report for each command.
pub(super) fn run(starts: &Starts, runs: usize) -> Result<Vec<Report>> {
    let gvisor = Gvisor::find()?;
    terminal::step(format_args!("To the first output of two commands, {runs} times each"));
    let mut reports = Vec::from(
        COMMANDS.map(|(name, ..)| starts.report(format!("start to the output of {name}"), "ms")),
    );
    for _ in 0..runs {
        for ((_, words, expected), report) in COMMANDS.iter().zip(&mut reports) {
            let check = |timed: &Timed| -> Result<()> {
                ensure!(timed.stdout == *expected, "{words:?} printed {:?}", timed.stdout);
                Ok(())
            };
            if let Some(gvisor) = &gvisor {
                let ran = Timed::of(&mut gvisor.command(words)?)?;
                check(&ran)?;
                report.add("gVisor: runsc run", ms(ran.first));
            }
            for way in WAYS {
                let (created, ran) = create_and_exec(starts, way, SANDBOX, words)?;
                check(&ran)?;
                starts.remove(&[SANDBOX])?;
                let name = format!("{}: msb create, msb exec", way.name());
                report.add(&name, ms(created.whole + ran.first));
            }
            // The image's template is still the one that is chosen.
            let run = [&["run", "-q", DEBIAN, "--"], *words].concat();
            let ran = Timed::of(&mut starts.home.command(&run))?;
            check(&ran)?;
            report.add("image template: msb run", ms(ran.first));
        }
    }
    Ok(reports)
}

/// Creates a sandbox that way and has it run a command.
pub(super) fn create_and_exec(
    starts: &Starts,
    way: Way,
    sandbox: &str,
    words: &[&str],
) -> Result<(Timed, Timed)> {
    let mut create = starts.home.command(&["create", "-q", "--name", sandbox, DEBIAN]);
    create.envs(starts.choose(way)?.iter().copied());
    let created = Timed::of(&mut create)?;
    let exec = [&["exec", sandbox, "--"], words].concat();
    let ran = Timed::of(&mut starts.home.command(&exec))?;
    starts.record(sandbox, way)?;
    Ok((created, ran))
}
