//! The store through msb: inspected, saved, collected, filled by several at once, and left half filled.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    home::{Home, Running, ends_within},
    registry::{Gate, Registry},
};

pub(crate) fn tool(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Numbers that look random and are the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Bytes that do not compress away.
    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(count).collect()
    }
}

/// An OCI layout with one image, `latest`, of a layer for each size in KiB.
pub(crate) fn layout(sizes: &[usize]) -> (TempDir, PathBuf) {
    let work = tempfile::tempdir().unwrap();
    let layout = work.path().join("layout");
    let image = format!("{}:latest", text(&layout));
    tool("umoci", &["init", "--layout", text(&layout)]);
    tool("umoci", &["new", "--image", &image]);
    let mut random = Random(1);
    for (index, kib) in sizes.iter().enumerate() {
        let root = work.path().join(index.to_string());
        fs::create_dir_all(root.join("data")).unwrap();
        for part in 0..8 {
            let bytes = random.bytes(kib * 128);
            fs::write(root.join(format!("data/{index}-{part}")), bytes).unwrap();
        }
        let tar = work.path().join("layer.tar");
        let args = ["--sort=name", "--mtime=@0", "-C", text(&root), "-cf", text(&tar), "."];
        tool("tar", &args);
        tool("umoci", &["raw", "add-layer", "--image", &image, text(&tar)]);
    }
    (work, layout)
}

/// Pushes an image and gives its name below the registry.
fn push(registry: &Registry, layout: &Path) -> &'static str {
    let target = format!("docker://{}/team/app:1", registry.address());
    let source = format!("oci:{}:latest", text(layout));
    tool("skopeo", &["copy", "-q", "--dest-tls-verify=false", &source, &target]);
    "team/app:1"
}

fn usage(home: &Home) -> Value {
    let said = home.run(&["image", "df", "--format", "json"]);
    assert_eq!((said.code, said.stderr.as_str()), (0, ""));
    serde_json::from_str(&said.stdout).unwrap()
}

fn part<'a>(usage: &'a Value, name: &str) -> &'a Value {
    usage["parts"].as_array().unwrap().iter().find(|part| part["part"] == name).unwrap()
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
    if path.is_dir() {
        fs::read_dir(path).unwrap().for_each(|entry| sync(&entry.unwrap().path()));
    }
}

/// Checks that `msb image df` accounts for every byte: its total is what a walk finds, and the sum of its parts.
#[track_caller]
fn accounts_for_every_byte(home: &Home) -> Value {
    let images = home.path().join("images");
    // What the disk has not taken yet may still change its size there.
    sync(&images);
    let usage = usage(home);
    let walked = tool("du", &["--summarize", "--block-size=1", text(&images)]);
    let walked: u64 = walked.split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(usage["total_bytes"], walked, "{usage}");
    let parts = usage["parts"].as_array().unwrap().iter();
    let sum: u64 = parts.map(|part| part["bytes"].as_u64().unwrap()).sum();
    assert_eq!(sum, walked, "{usage}");
    assert_eq!(part(&usage, "other")["count"], 0, "{usage}");
    usage
}

#[test]
fn pull_that_is_killed_at_any_instant_is_made_up_for_by_the_next() {
    const KILLS: u64 = 50;
    let (_work, layout) = layout(&[900, 1500, 40, 600]);
    let registry = Registry::start();
    let name = format!("{}/{}", registry.address(), push(&registry, &layout));
    let home = Home::empty();
    let images = home.path().join("images");
    let pull = ["pull", "-q", name.as_str()];
    let start = Instant::now();
    let whole = home.run(&pull);
    let time = start.elapsed();
    assert_eq!((whole.code, whole.stderr.as_str()), (0, ""));
    let sound = accounts_for_every_byte(&home);

    let mut random = Random(0x5eed);
    let mut killed = 0;
    for round in 0..KILLS {
        fs::remove_dir_all(&images).unwrap();
        let pulling = home.start(&pull);
        let instant = time.mul_f64((random.next() % 1000) as f64 / 1000.0);
        if !ends_within(pulling.pid(), instant) {
            pulling.signal(Signal::KILL);
            killed += 1;
        }
        drop(pulling);
        // What is there may be half made, but it is all accounted for.
        if images.exists() {
            accounts_for_every_byte(&home);
        }
        home.check(&pull, 0, &whole.stdout, "");
        accounts_for_every_byte(&home);
        let collected = home.run(&["image", "gc"]);
        assert_eq!((collected.code, collected.stderr.as_str()), (0, ""), "round {round}");
        let after = accounts_for_every_byte(&home);
        for name in ["layers", "records", "metadata", "documents", "names", "unfinished"] {
            assert_eq!(part(&after, name), part(&sound, name), "round {round}, {name}");
        }
    }
    assert!(killed >= KILLS / 4, "only {killed} pulls were killed before they ended");
}

/// Waits until a process has a layer open that another one is making.
#[track_caller]
fn wait_until_it_wants_a_layer(pulling: &Running) {
    let pid = pulling.pid();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_partial_layer_open(pid) {
        assert!(Instant::now() < deadline, "it does not come to the layers");
        assert!(!ends_within(pid, Duration::from_millis(5)), "it ended");
    }
}

fn has_partial_layer_open(pid: Pid) -> bool {
    let fds = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let mut links = fs::read_dir(fds).into_iter().flatten().flatten();
    links.any(|link| {
        fs::read_link(link.path()).is_ok_and(|to| text(&to).ends_with(".erofs.partial"))
    })
}

#[test]
fn two_pulls_at_once_fetch_each_layer_once() {
    let (_work, layout) = layout(&[900, 40, 600]);
    let registry = Registry::start();
    let app = push(&registry, &layout);
    let before = registry.blob_requests();
    // The first is stopped amid its layers, so that the second has to wait for it.
    let gate = Gate::new(&registry, 400 << 10);
    let name = format!("{}/{app}", gate.address());
    let home = Home::empty();
    let first = home.start(&["pull", "-q", &name]);
    gate.wait_until_closed();
    let direct = format!("{}/{app}", registry.address());
    let second = home.start(&["pull", "-q", &direct]);
    wait_until_it_wants_a_layer(&second);
    gate.open();
    for pulling in [first, second] {
        let ran = pulling.end();
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    }
    let after = registry.blob_requests();
    let asked = |digest: &String| after[digest] - before.get(digest).copied().unwrap_or_default();
    let counts: Vec<usize> = after.keys().map(asked).filter(|count| *count > 0).collect();
    // Three layers once, and the configuration by each.
    let mut sorted = counts.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, [1, 1, 1, 2], "{after:?}");
    accounts_for_every_byte(&home);
    let listed = home.run(&["image", "ls", "-q"]).stdout;
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

#[test]
fn layer_of_a_pull_that_dies_is_taken_over_by_the_one_that_waits() {
    let (_work, layout) = layout(&[900]);
    let registry = Registry::start();
    let app = push(&registry, &layout);
    let gate = Gate::new(&registry, 400 << 10);
    let home = Home::empty();
    let first = home.start(&["pull", "-q", &format!("{}/{app}", gate.address())]);
    gate.wait_until_closed();
    let name = format!("{}/{app}", registry.address());
    let second = home.start(&["pull", "-q", &name]);
    wait_until_it_wants_a_layer(&second);
    assert!(!ends_within(second.pid(), Duration::from_millis(100)), "it does not wait");
    first.signal(Signal::KILL);
    let ran = second.end();
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert!(ran.stdout.starts_with(&name), "{ran:?}");
    let usage = accounts_for_every_byte(&home);
    assert_eq!(part(&usage, "unfinished")["count"], 0, "{usage}");
    drop(first);
}

#[test]
fn image_can_be_looked_into_renamed_saved_and_collected() {
    let (work, layout) = layout(&[40, 16]);
    let home = Home::empty();
    let loaded = home.run(&["load", "-q", "-i", text(&layout), "-t", "app:1"]);
    assert_eq!((loaded.code, loaded.stderr.as_str()), (0, ""));

    home.check(&["image", "ls-files", "app:1"], 0, "data\n", "");
    let listed = home.run(&["image", "ls-files", "-r", "app:1"]).stdout;
    let names: Vec<&str> = listed.lines().collect();
    assert_eq!((names.len(), names[0], names[1]), (17, "/data", "/data/0-0"));
    let long = home.run(&["image", "ls-files", "-l", "app:1", "data/../data/0-0"]).stdout;
    assert!(long.starts_with("-rw-r--r--     0     0       5120 "), "{long}");
    assert!(long.ends_with(" data/../data/0-0\n"), "{long}");
    let json = home.run(&["image", "ls-files", "--format", "json", "app:1", "/data"]).stdout;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["name"], &json[0]["type"]), (&"0-0".into(), &"file".into()));
    let cat = home.msb(&["image", "cat", "app:1", "/data/1-7"]).output().unwrap();
    assert!(cat.stdout == fs::read(work.path().join("1/data/1-7")).unwrap());
    home.check(
        &["image", "cat", "app:1", "/data"],
        125,
        "",
        "msb: \"/data\" in app:1 is no ordinary file\n",
    );

    let inspected = home.run(&["image", "inspect", "app:1"]).stdout;
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["references"], serde_json::json!(["app:1"]));
    assert_eq!(inspected["layers"].as_array().unwrap().len(), 2);
    let digest = inspected["digest"].as_str().unwrap();
    home.check(
        &["image", "tag", "app:1", "team/app"],
        0,
        &format!("team/app:latest {digest}\n"),
        "",
    );

    let archive = work.path().join("saved.tar");
    home.check(&["save", "-o", text(&archive), "app:1", "team/app"], 0, "", "");
    let saved = home.msb(&["image", "save", "-o", "-", "app:1", "team/app"]).output().unwrap();
    assert!(saved.stdout == fs::read(&archive).unwrap());
    let other = Home::empty();
    let loaded = other.run(&["load", "-q", "-i", text(&archive)]).stdout;
    let names: Vec<&str> = loaded.lines().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(names, ["app:1", "team/app:latest"]);
    let again: Value =
        serde_json::from_str(&other.run(&["image", "inspect", "app:1"]).stdout).unwrap();
    for field in ["config_digest", "config"] {
        assert_eq!(again[field], inspected[field], "{field}");
    }
    let diff_ids = |of: &Value| -> Vec<Value> {
        of["layers"].as_array().unwrap().iter().map(|layer| layer["diff_id"].clone()).collect()
    };
    assert_eq!(diff_ids(&again), diff_ids(&inspected));

    let usage = accounts_for_every_byte(&home);
    assert_eq!(usage["images"][0]["references"], serde_json::json!(["app:1", "team/app:latest"]));
    assert_eq!(usage["reclaimable_bytes"], 0);
    let table = home.run(&["image", "df"]).stdout;
    assert!(table.contains("\nlayers") && table.contains("\ntotal"), "{table}");
    home.check(&["image", "gc"], 0, "removed 0 images and 0 layers, freed 0 B\n", "");
    home.check(&["image", "rm", "team/app"], 0, "team/app:latest: freed 0 B\n", "");
    let shrunk = home.run(&["image", "gc", "--max-size", "0", "--format", "json"]).stdout;
    let shrunk: Value = serde_json::from_str(&shrunk).unwrap();
    assert_eq!((&shrunk["images"], &shrunk["layers"]), (&1.into(), &2.into()));
    home.check(&["image", "ls", "-q"], 0, "", "");
    home.check(
        &["image", "inspect", "app:1"],
        125,
        "",
        "msb: image docker.io/library/app:1 is not in the local store\n\
         hint: pull or load the image first, or allow pulling\n",
    );
    accounts_for_every_byte(&home);
}

#[test]
fn root_directory_becomes_an_image() {
    let work = tempfile::tempdir().unwrap();
    let root = work.path().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::write(root.join("bin/tool"), "#!").unwrap();
    let home = Home::empty();
    let load = ["load", "-q", "-i", text(&root)];
    let options = ["-t", "mine", "-e", "A=1", "-w", "/bin", "-u", "7:8", "--", "tool", "--flag"];
    let loaded = home.run(&[&load[..], &options].concat());
    assert_eq!((loaded.code, loaded.stderr.as_str()), (0, ""));
    assert!(loaded.stdout.starts_with("mine:latest sha256:"), "{loaded:?}");
    home.check(&["image", "ls-files", "-r", "mine"], 0, "/bin\n/bin/tool\n", "");
    home.check(&["image", "cat", "mine", "bin/tool"], 0, "#!", "");
    let inspected = home.run(&["image", "inspect", "mine"]).stdout;
    let config = serde_json::from_str::<Value>(&inspected).unwrap()["config"].take();
    assert_eq!(config["cmd"], serde_json::json!(["tool", "--flag"]));
    assert_eq!(config["env"], serde_json::json!(["A=1"]));
    assert_eq!((&config["working_dir"], &config["user"]), (&"/bin".into(), &"7:8".into()));

    let unnamed = home.run(&load);
    assert_eq!(unnamed.code, 125);
    assert!(unnamed.stderr.contains("needs a name: --tag"), "{unnamed:?}");
    let (_work, layout) = layout(&[4]);
    let meant = home.run(&["load", "-q", "-i", text(&layout), "-t", "x", "-e", "A=1"]);
    assert!(meant.stderr.contains("is no root directory"), "{meant:?}");
    accounts_for_every_byte(&home);
}
