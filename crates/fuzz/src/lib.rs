//! The fuzzer: parsers of hostile bytes, a corpus each, mutation, and no nightly compiler.
//!
//! `cargo xtask fuzz [--seconds N]` runs it in every crate that has targets: every file of
//! `fuzz/corpus/<target>/` first, then mutations of them for as long as it was told. An input that ends
//! in a way not seen before (another error, another size) joins the others, so that mutations go on from
//! there. A panic is reported with a file to be kept as a named test. Same seed, same inputs.
#![forbid(unsafe_code)]

pub mod frames;
mod mutate;

use std::collections::HashSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use self::mutate::Random;

/// No input of this size may take longer.
const SLOW: Duration = Duration::from_secs(10);

/// Inputs kept for one target; the oldest found ones go first.
const POOL: usize = 2000;

/// One parser of hostile bytes.
#[derive(Debug)]
pub struct Target {
    /// Also the name of its corpus.
    pub name: &'static str,
    /// Takes one input, and says how it ended in words without numbers: another ending is another
    /// finding. Panics where a promise is broken.
    pub run: fn(&[u8]) -> String,
    /// Mends what would stop every mutation at the first check.
    pub repair: fn(&mut [u8]),
}

/// Runs `targets`, whose corpora are in the folder `corpus`, for as long as the program's arguments say.
///
/// # Errors
/// The first input that broke something.
#[expect(clippy::print_stdout, reason = "the fuzzer is a program for people")]
pub fn fuzz(targets: &'static [Target], corpus: &Path) -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seconds, seed] = match arguments.as_slice() {
        [] => [1, 1],
        [seconds, seed] => [seconds.parse()?, seed.parse()?],
        _ => bail!("usage: fuzz SECONDS SEED"),
    };
    // Their messages are part of the report.
    panic::set_hook(Box::new(|_| {}));
    let queue = Mutex::new(targets.iter());
    let work = || -> Result<()> {
        loop {
            let next = queue.lock().expect("no thread panics with it").next();
            let Some(target) = next else { return Ok(()) };
            let count = Run::new(target, corpus, seed)?.run(Duration::from_secs(seconds))?;
            println!("{}: {count} inputs, nothing broke", target.name);
        }
    };
    let cores = thread::available_parallelism().map_or(1, Into::into);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("panics are caught"))
    })
}

/// One target on its way.
struct Run {
    target: &'static Target,
    random: Random,
    pool: Vec<Vec<u8>>,
    corpus: usize,
    seen: HashSet<String>,
}

impl Run {
    fn new(target: &'static Target, corpus: &Path, seed: u64) -> Result<Self> {
        let folder = corpus.join(target.name);
        let list = || format!("list {}", folder.display());
        let mut paths = fs::read_dir(&folder)
            .with_context(list)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<PathBuf>>>()?;
        paths.sort();
        let mut pool = vec![Vec::new()];
        for path in paths {
            pool.push(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
        let corpus = pool.len();
        Ok(Self { target, random: Random::new(seed), pool, corpus, seen: HashSet::new() })
    }

    /// Answers with the number of inputs tried.
    fn run(mut self, time: Duration) -> Result<u64> {
        for input in self.pool.clone() {
            self.try_input(&input)?;
        }
        let mut count = self.pool.len() as u64;
        let until = Instant::now() + time;
        while Instant::now() < until {
            let mut input = self.random.mutate(&self.pool);
            (self.target.repair)(&mut input);
            if self.try_input(&input)? {
                if self.pool.len() == POOL {
                    self.pool.remove(self.corpus);
                }
                self.pool.push(input);
            }
            count += 1;
        }
        Ok(count)
    }

    /// Whether the input ended in a way not seen before.
    fn try_input(&mut self, input: &[u8]) -> Result<bool> {
        let started = Instant::now();
        let end = panic::catch_unwind(AssertUnwindSafe(|| (self.target.run)(input)));
        let what = match end {
            Ok(_) if started.elapsed() > SLOW => "took too long".to_owned(),
            Ok(end) => return Ok(self.seen.insert(end)),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().map(String::as_str);
                text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").into()
            }
        };
        let file =
            std::env::temp_dir().join(format!("fuzz-{}-{}", self.target.name, self.seen.len()));
        fs::write(&file, input).with_context(|| format!("write {}", file.display()))?;
        bail!(
            "{}: {what}; the input is in {}: make it a named test",
            self.target.name,
            file.display()
        )
    }
}
