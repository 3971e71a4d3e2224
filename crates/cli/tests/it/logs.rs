//! `msb logs`: what commands wrote, exactly, while they run and after.

use std::{fs, os::unix::fs::PermissionsExt};

use crate::home::Home;

#[test]
fn output_of_commands_is_there_byte_for_byte_until_the_sandbox_is_removed() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    home.check(&["logs", "box"], 0, "", "");
    let script = "echo out; echo err >&2; printf 'a\\0b'";
    assert_eq!(home.run(&["exec", "box", "--", "sh", "-c", script]).code, 0);
    home.check(&["exec", "box", "--", "echo", "second"], 0, "second\n", "");
    home.check(&["stop", "box"], 0, "box\n", "");
    home.check(&["logs", "box"], 0, "out\na\0bsecond\n", "err\n");
    home.check(&["logs", "box", "--source", "stdout", "--tail", "1"], 0, "a\0bsecond\n", "");
    home.check(&["logs", "box", "--since", "2999-01-01T00:00:00Z"], 0, "", "");
    home.check(&["logs", "-f", "box", "--since", "1h", "--source", "stderr"], 0, "", "err\n");
    let kernel = home.run(&["logs", "box", "--source", "kernel,runtime"]);
    assert_eq!((kernel.code, kernel.stderr.as_str()), (0, ""), "{kernel:?}");

    // The next run goes on with the same log, and numbers commands further.
    home.check(&["start", "-q", "box"], 0, "box\n", "");
    home.check(&["exec", "box", "--", "printf", "\\377"], 0, "\u{fffd}", "");
    // The log is written beside the command, and to its end when the sandbox ends.
    home.check(&["stop", "box"], 0, "box\n", "");
    let json = home.run(&["logs", "box", "--format", "json", "--source", "stdout"]).stdout;
    let entries: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text: String = entries.iter().filter_map(|entry| entry["text"].as_str()).collect();
    assert_eq!(text, "out\na\0bsecond\n");
    let last = entries.last().unwrap();
    assert_eq!(
        (&last["base64"], &last["exec"], &last["source"]),
        (&"/w==".into(), &3.into(), &"stdout".into())
    );
    assert!(last["time"].as_str().unwrap().ends_with('Z'), "{last}");
}

#[test]
fn following_shows_what_comes_and_ends_with_the_sandbox() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    let mut following = home.start(&["logs", "-f", "box"]);
    home.check(&["exec", "box", "--", "echo", "one"], 0, "one\n", "");
    following.expect("one\n");
    // More than all its files hold: a follower that keeps up misses nothing it is not told of.
    let much = "head -c 40000000 /dev/zero | tr '\\0' x | fold -w 99; echo; echo end";
    assert_eq!(home.run(&["exec", "box", "--", "sh", "-c", much]).code, 0);
    home.check(&["stop", "box"], 0, "box\n", "");
    let ended = following.end();
    assert_eq!(ended.code, 0, "{:?}", ended.stderr);
    assert!(ended.stdout.ends_with("x\nend\n"));
}

#[test]
fn logs_are_read_where_nothing_can_be_written() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    home.check(&["exec", "box", "--", "echo", "kept"], 0, "kept\n", "");
    home.check(&["stop", "box"], 0, "box\n", "");
    let before = snapshot(&home);
    let logs = home.path().join("sandboxes/box/logs");
    fs::set_permissions(&logs, PermissionsExt::from_mode(0o500)).unwrap();
    home.check(&["logs", "box"], 0, "kept\n", "");
    home.check(&["logs", "-f", "box"], 0, "kept\n", "");
    fs::set_permissions(&logs, PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(snapshot(&home), before, "reading has changed something");
}

fn snapshot(home: &Home) -> Vec<(String, u64)> {
    let folder = home.path().join("sandboxes/box");
    let entries = [folder.clone(), folder.join("logs")].into_iter().flat_map(|folder| {
        fs::read_dir(folder).unwrap().map(|entry| {
            let entry = entry.unwrap();
            (entry.path().display().to_string(), entry.metadata().unwrap().len())
        })
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort();
    entries
}
