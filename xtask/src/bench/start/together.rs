//! Several starts at once.

use std::{thread, time::Instant};

use anyhow::Result;

use super::{Starts, WAYS, output};
use crate::{
    bench::{report::Report, timed::ms},
    terminal,
};

const SANDBOXES: usize = 8;

/// Most rounds: each is eight samples.
const MOST_RUNS: usize = 3;

/// Every way, in turn: until each has answered, and until all have.
pub(super) fn run(starts: &Starts, runs: usize) -> Result<Vec<Report>> {
    let runs = runs.min(MOST_RUNS);
    terminal::step(format_args!("{SANDBOXES} at once, {runs} times each"));
    let mut each = starts.report(format!("start {SANDBOXES} at once, each to its output"), "ms");
    let mut all = starts.report(format!("start {SANDBOXES} at once, all to their output"), "ms");
    let names: Vec<String> =
        (0..SANDBOXES).map(|number| format!("bench-at-once-{number}")).collect();
    for _ in 0..runs {
        for way in WAYS {
            // Here, and not by eight threads at once.
            starts.choose(way)?;
            let begun = Instant::now();
            let start = |name| {
                let done = output::create_and_exec(starts, way, name, &["/bin/echo", "hi"]);
                done.map(|_| begun.elapsed())
            };
            let took: Result<Vec<_>> = thread::scope(|scope| {
                let lanes: Vec<_> =
                    names.iter().map(|name| scope.spawn(move || start(name))).collect();
                let ended = lanes.into_iter().map(|lane| match lane.join() {
                    Ok(done) => done,
                    Err(panic) => std::panic::resume_unwind(panic),
                });
                ended.collect()
            });
            let took = took?;
            took.iter().for_each(|took| each.add(way.name(), ms(*took)));
            all.add(way.name(), ms(took.into_iter().max().unwrap_or_default()));
            starts.remove(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
    }
    Ok(vec![each, all])
}
