//! Many processes write at once, and some are killed while they do.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use microsandbox_db::{Catalogue, SandboxFilter, SandboxRow};

use crate::{Home, sandbox};

const WRITERS: usize = 6;
const ROUNDS: usize = 50;

/// Tells a process of this test program which catalogue to write to, and under which prefix.
const CATALOGUE: &str = "TEST_CATALOGUE";
const PREFIX: &str = "TEST_PREFIX";

#[tokio::test]
async fn processes_that_open_and_write_at_once_lose_nothing() {
    let home = Home::new();
    let mut writers: Vec<_> = (0..WRITERS)
        .map(|writer| Writer::start(&home.catalogue(), &format!("w{writer}")))
        .collect();

    // Meanwhile a reader asks over and over, without ever seeing half a sandbox.
    let total = WRITERS * ROUNDS;
    let mut seen = 0;
    while seen < total {
        if let Some(reader) = Catalogue::open_existing(home.catalogue()).unwrap() {
            let sandboxes = reader.sandboxes(&SandboxFilter::default()).await.unwrap();
            assert!(sandboxes.len() >= seen, "{} after {seen}", sandboxes.len());
            assert!(sandboxes.iter().all(is_whole), "{sandboxes:?}");
            seen = sandboxes.len();
        }
        if writers.iter_mut().any(Writer::has_failed) {
            break;
        }
    }

    for writer in writers {
        assert_eq!(writer.finish(), ROUNDS);
    }
    assert_eq!(seen, total);
}

#[tokio::test]
async fn writers_killed_at_any_time_leave_whole_sandboxes_and_no_lock() {
    let home = Home::new();
    for round in 0..12 {
        // The first is killed while it makes the catalogue, others while they write.
        let mut victim = Writer::start(&home.catalogue(), &format!("victim{round}"));
        let acknowledged: Vec<_> =
            victim.lines.by_ref().take(round).map(|line| line.unwrap()).collect();
        victim.kill();

        let survivor = home.open().await;
        survivor.insert_sandbox(&sandbox(&format!("survivor{round}"), TWO)).await.unwrap();
        let sandboxes = survivor.sandboxes(&SandboxFilter::default()).await.unwrap();
        assert!(sandboxes.iter().all(is_whole), "{sandboxes:?}");
        for name in acknowledged {
            assert!(sandboxes.iter().any(|sandbox| sandbox.name == name), "lost {name}");
        }
    }
}

/// Not a test of its own: what the other tests start this program for.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "the only way to hand a test process its orders")]
async fn be_a_writer_when_told_to() {
    let (Some(path), Ok(prefix)) = (std::env::var_os(CATALOGUE), std::env::var(PREFIX)) else {
        return;
    };
    let path = PathBuf::from(path);
    for round in 0..ROUNDS {
        // Opened each time, as commands do, so that logs come and go as well.
        let catalogue = Catalogue::open(&path).await.unwrap();
        let name = format!("{prefix}-{round}");
        catalogue.insert_sandbox(&sandbox(&name, TWO)).await.unwrap();
        let mut out = std::io::stdout().lock();
        writeln!(out, "wrote {name}").unwrap();
        out.flush().unwrap();
    }
}

const TWO: &[(&str, &str)] = &[("first", "1"), ("second", "2")];

fn is_whole(sandbox: &SandboxRow) -> bool {
    sandbox.labels.len() == 2 && sandbox.config_json.contains(&sandbox.name)
}

struct Writer {
    child: Child,
    lines: Box<dyn Iterator<Item = std::io::Result<String>>>,
}

impl Writer {
    fn start(catalogue: &Path, prefix: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writing::be_a_writer_when_told_to", "--nocapture"])
            .env(CATALOGUE, catalogue)
            .env(PREFIX, prefix)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines: Lines<BufReader<ChildStdout>> =
            BufReader::new(child.stdout.take().unwrap()).lines();
        let lines = lines.filter_map(|line| match line {
            Ok(line) => line.strip_prefix("wrote ").map(|name| Ok(name.to_owned())),
            Err(error) => Some(Err(error)),
        });
        Self { child, lines: Box::new(lines) }
    }

    fn has_failed(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some_and(|status| !status.success())
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Number of sandboxes it says it has written.
    fn finish(mut self) -> usize {
        let wrote = self.lines.by_ref().count();
        assert!(self.child.wait().unwrap().success());
        wrote
    }
}
