//! Many processes at the same sandboxes at once: one wins, the others are told why.

use crate::home::{Home, Ran, Running};

/// As many at once.
fn at_once(home: &Home, count: usize, arguments: &[&str]) -> Vec<Ran> {
    let started: Vec<Running> = (0..count).map(|_| home.start(arguments)).collect();
    started.into_iter().map(Running::end).collect()
}

/// Tells how many succeeded; the others must say one of these things.
#[track_caller]
fn winners(ran: &[Ran], losers_say: &[&str]) -> usize {
    let (won, lost): (Vec<&Ran>, Vec<&Ran>) = ran.iter().partition(|ran| ran.code == 0);
    for ran in lost {
        let told = losers_say.iter().any(|words| ran.stderr.contains(words));
        assert!(ran.code == 125 && told, "{ran:?}");
    }
    won.len()
}

const RUNNING: &str = "msb: sandbox 'a' is still running\nhint: ";
const BUSY: &str = "msb: sandbox 'a' is in use by another command\nhint: ";
const EXISTS: &str = "msb: sandbox 'a' already exists";
const MISSING: &str = "msb: no sandbox is named 'a'\nhint: ";

#[test]
fn fifty_creations_at_once_succeed() {
    let home = Home::with_busybox();
    let names: Vec<String> = (0..50).map(|number| format!("s{number:02}")).collect();
    let create = |name: &String| home.start(&["create", "--no-start", "--name", name, "busybox"]);
    let started: Vec<Running> = names.iter().map(create).collect();
    for (name, running) in names.iter().zip(started) {
        let ran = running.end();
        assert_eq!((ran.code, ran.stdout), (0, format!("{name}\n")), "{}", ran.stderr);
    }
    let all: String = names.iter().map(|name| format!("{name}\n")).collect();
    home.check(&["ls", "-q"], 0, &all, "");
    home.check(&["rm", "--all"], 0, &all, "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn of_many_creations_starts_and_removals_of_one_name_one_wins() {
    let home = Home::with_busybox();
    let create = ["create", "--no-start", "--name", "a", "busybox"];
    assert_eq!(winners(&at_once(&home, 8, &create), &[EXISTS, BUSY]), 1);
    assert_eq!(winners(&at_once(&home, 4, &["start", "-q", "a"]), &[RUNNING, BUSY]), 1);
    home.check(&["exec", "a", "--", "echo", "one"], 0, "one\n", "");
    assert_eq!(winners(&at_once(&home, 4, &["rm", "a"]), &[RUNNING]), 0);
    // Whoever comes too late finds it stopped, which is what was wanted.
    assert_eq!(winners(&at_once(&home, 4, &["stop", "a"]), &[]), 4);
    assert_eq!(winners(&at_once(&home, 8, &["rm", "a"]), &[BUSY, MISSING]), 1);
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn replacements_at_once_leave_one_sandbox_that_works() {
    let home = Home::with_busybox();
    home.check(&["create", "--no-start", "--name", "a", "busybox"], 0, "a\n", "");
    let replace = [
        "create",
        "-q",
        "--replace-with-timeout",
        "0s",
        "--name",
        "a",
        "busybox",
        "--memory",
        "192",
    ];
    // One that is replaced while it boots is ended, and says so.
    let replaced = "msb: sandbox 'a' did not start: its supervisor was terminated";
    let ran = at_once(&home, 4, &replace);
    let won = winners(&ran, &[EXISTS, RUNNING, BUSY, replaced]);
    assert!((1..=4).contains(&won), "{ran:?}");
    home.check(&["ls", "-q"], 0, "a\n", "");
    home.check(&["exec", "a", "--", "echo", "works"], 0, "works\n", "");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn starts_stops_and_removals_together_leave_nothing_behind() {
    let home = Home::with_busybox();
    home.check(&["create", "--no-start", "--name", "a", "busybox"], 0, "a\n", "");
    let verbs =
        [&["start", "-q", "a"][..], &["stop", "a"], &["restart", "-q", "a"], &["rm", "-f", "a"]];
    let started: Vec<Running> = verbs.iter().map(|verb| home.start(verb)).collect();
    let ran: Vec<Ran> = started.into_iter().map(Running::end).collect();
    let ended = ["msb: sandbox 'a' did not start: ", "msb: sandbox 'a' ended: "];
    let gone = "msb: sandbox 'a' cannot start: ";
    winners(&ran, &[RUNNING, BUSY, MISSING, ended[0], ended[1], gone]);
    assert!(home.run(&["rm", "-f", "a"]).code == 0);
    assert_eq!(home.residue(), Vec::<String>::new());
}
