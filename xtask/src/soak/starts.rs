//! `cargo xtask soak starts`: many sandboxes from one template, several at a time. All answer, no two are
//! alike, and nothing of them is left.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};

use super::{in_lanes, left::Left};
use crate::{
    bench::{
        home::{BenchHome, IMAGE},
        templates::{Of, Templates},
    },
    terminal,
};

/// Starts at once.
const LANES: usize = 8;

const NAME: &str = "soak-starts";

/// What tells a sandbox from its siblings.
const PARTS: [&str; 4] = ["randomness", "machine id", "boot id", "host name"];

/// Its first act, and then the rest of [`PARTS`].
const TELL: &str = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; \
                    cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname";

/// Starts `count` from the template of the machine, and as many from that of the image.
pub(super) fn run(count: usize) -> Result<()> {
    let home = BenchHome::prepare_in("soak-starts-home")?;
    home.msb().args(["rm", "-f", "--all"]).output()?;
    let templates = Templates::ensure(&home, IMAGE)?;
    let before = Left::look(&home, NAME)?;
    let seen = Mutex::new(PARTS.map(|_| BTreeSet::new()));
    for of in [Of::Machine, Of::Image] {
        templates.choose(of)?;
        terminal::step(format_args!(
            "{count} starts from the template of the {of:?}, {LANES} at a time"
        ));
        let begun = Instant::now();
        in_lanes(LANES, 0..count, |turn| {
            let name = format!("{NAME}-{of:?}-{turn}").to_lowercase();
            let told = start(&home, &templates, of, &name).with_context(|| name.clone())?;
            let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
            for ((part, seen), told) in PARTS.iter().zip(seen.iter_mut()).zip(told) {
                ensure!(seen.insert(told), "{name} has the {part} of another");
            }
            Ok(())
        })?;
        terminal::step(format_args!("{:.0} s", begun.elapsed().as_secs_f64()));
    }
    let seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
    for (part, seen) in PARTS.iter().zip(&seen) {
        terminal::result(format_args!("{:10}  different values of {part}", seen.len()));
    }
    before.settled(&home, NAME)
}

/// One life; gives what the sandbox told of itself.
fn start(home: &BenchHome, templates: &Templates, of: Of, name: &str) -> Result<Vec<String>> {
    home.msb().args(["create", "-q", "--name", name, IMAGE]).output()?;
    let told = home.msb().args(["exec", name, "--", "sh", "-c", TELL]).output()?;
    templates.check(of, &home.record(name)?)?;
    home.msb().args(["rm", "-f", name]).output()?;
    let told: Vec<String> = told.lines().map(str::to_owned).collect();
    ensure!(told.len() == PARTS.len() && told[0].len() == 64, "it told {told:?}");
    Ok(told)
}
