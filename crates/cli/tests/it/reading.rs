//! Commands that only read, on a home that cannot be written to: they work, and nothing changes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::home::{Home, Ran};

/// Everything below a directory: mode, size, times of change, and what is in it.
fn listing(root: &Path) -> BTreeMap<PathBuf, (u32, u64, [i64; 4], Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut ahead = vec![root.to_owned()];
    while let Some(path) = ahead.pop() {
        let meta = path.symlink_metadata().unwrap();
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        let mut content = Vec::new();
        if meta.is_dir() {
            ahead.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if meta.is_file() && !path.ends_with("upper.ext4") {
            // The disk is mostly hole, and its times tell of every write.
            content = fs::read(&path).unwrap();
        }
        found.insert(path, (meta.mode(), meta.len(), times, content));
    }
    found
}

/// Runs `msb` where the home is mounted read-only, as a user who may do that without being root.
fn on_read_only_home(home: &Home, arguments: &[&str]) -> Ran {
    let msb = home.msb(arguments);
    let script = "mount --bind \"$MSB_HOME\" \"$MSB_HOME\" && \
        mount -o remount,bind,ro \"$MSB_HOME\" && ! touch \"$MSB_HOME/x\" 2>/dev/null && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", script, "sh"]).arg(msb.get_program()).args(arguments);
    for (name, value) in msb.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    home.end(command.stdin(Stdio::null()))
}

#[test]
fn reading_works_on_a_read_only_home_and_changes_nothing() {
    let home = Home::with_busybox();
    for name in ["stopped", "runs"] {
        home.check(&["create", "-q", "--name", name, "busybox"], 0, &format!("{name}\n"), "");
        home.check(&["exec", name, "--", "echo", "logged"], 0, "logged\n", "");
    }
    home.check(&["stop", "stopped"], 0, "stopped\n", "");
    home.check(&["restart", "-q", "stopped"], 0, "stopped\n", "");
    home.check(&["stop", "stopped"], 0, "stopped\n", "");
    home.check(&["create", "--no-start", "--name", "created", "busybox"], 0, "created\n", "");
    let commands = [
        &["ls", "--format", "json"][..],
        &["ls", "-q", "--label", "a=b"],
        &["inspect", "stopped"],
        &["inspect", "runs"],
        &["inspect", "created"],
        &["logs", "stopped"],
        &["logs", "runs", "--source", "kernel", "--source", "runtime"],
        &["history", "--format", "json"],
        &["wait", "stopped"],
        &["image", "ls", "--format", "json"],
        &["image", "inspect", "busybox"],
        &["image", "df", "--format", "json"],
        &["image", "ls-files", "busybox", "/bin"],
        &["version"],
    ];
    let writable: Vec<Ran> = commands.iter().map(|command| home.run(command)).collect();
    let before = listing(home.path());
    for (command, writable) in commands.iter().zip(writable) {
        let read_only = on_read_only_home(&home, command);
        let told = |ran: Ran| (ran.code, ran.stdout, ran.stderr);
        assert_eq!(told(read_only), told(writable), "{command:?}");
    }
    let after = listing(home.path());
    for (path, was) in &before {
        // A guest that runs may write to its disk at any time.
        if !path.ends_with("runs/upper.ext4") {
            assert!(after.get(path) == Some(was), "{} has changed", path.display());
        }
    }
    assert_eq!(after.len(), before.len(), "something was made");
    home.check(&["rm", "-f", "created", "runs", "stopped"], 0, "created\nruns\nstopped\n", "");
}
