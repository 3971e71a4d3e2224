//! Images through msb: archives and a registry, made and served by other people's tools.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    home::{Home, layout},
    registry::Registry,
};

const PRINT_42: [&str; 3] = ["python3", "-c", "print(6*7)"];

fn tool(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn image_from_a_registry_runs() {
    let home = Home::with_guest();
    let registry = Registry::start();
    let name = format!("{}/debian:py", registry.address());
    let source = format!("oci:{}:py", text(&layout("debian-py")));
    let target = format!("docker://{name}");
    tool("skopeo", &["copy", "-q", "--dest-tls-verify=false", &source, &target]);

    let pulled = home.run(&["pull", &name]);
    assert_eq!(pulled.code, 0, "{pulled:?}");
    let said = pulled.stdout.trim().strip_prefix(&format!("{name} sha256:")).unwrap();
    assert_eq!(said.len(), 64, "{pulled:?}");
    assert!(pulled.stderr.contains("msb: layer 1 of 3: ready\n"), "{pulled:?}");
    // Nothing is fetched twice.
    home.check(&["pull", &name], 0, &pulled.stdout, "");

    home.check(&[&["run", "-q", &name, "--"], &PRINT_42[..]].concat(), 0, "42\n", "");
    home.check(&["image", "ls", "-q"], 0, &format!("{name}\n"), "");
    let missing = home.run(&["pull", "-q", &format!("{}/none", registry.address())]);
    assert_eq!((missing.code, missing.stdout.as_str()), (125, ""));
    let removed = home.run(&["image", "rm", &name]);
    assert!(removed.stdout.starts_with(&format!("{name}: freed ")), "{removed:?}");
    home.check(&["image", "ls", "-q"], 0, "", "");
}

#[test]
fn archives_of_skopeo_run() {
    let home = Home::with_guest();
    let work = tempfile::tempdir().unwrap();
    let source = format!("oci:{}:py", text(&layout("debian-py")));
    let (oci, docker) = (work.path().join("oci.tar"), work.path().join("docker.tar"));
    tool("skopeo", &["copy", "-q", &source, &format!("oci-archive:{}:py", text(&oci))]);
    let docker_target = format!("docker-archive:{}:team/py:1", text(&docker));
    tool("skopeo", &["copy", "-q", &source, &docker_target]);

    let loaded = home.run(&["load", "-q", "-i", text(&oci), "-t", "from-oci"]);
    assert!(loaded.stdout.starts_with("from-oci:latest sha256:"), "{loaded:?}");
    home.check(&[&["run", "-q", "from-oci", "--"], &PRINT_42[..]].concat(), 0, "42\n", "");

    let mut load = home.msb(&["load", "-q", "-i", "-"]);
    let loaded = home.end(load.stdin(File::open(&docker).unwrap()));
    assert!(loaded.stdout.starts_with("team/py:1 sha256:"), "{loaded:?}");
    home.check(&[&["run", "-q", "team/py:1", "--"], &PRINT_42[..]].concat(), 0, "42\n", "");
}

#[test]
fn broken_archives_leave_the_store_as_it_was() {
    let home = Home::with_guest();
    let work = tempfile::tempdir().unwrap();
    let (whole, part) = (work.path().join("whole.tar"), work.path().join("part.tar"));
    tool("tar", &["-C", text(&layout("busybox")), "-cf", text(&whole), "."]);
    let bytes = fs::read(&whole).unwrap();
    fs::write(&part, &bytes[..bytes.len() / 2]).unwrap();
    for (archive, words) in [
        (text(&part), "msb: "),
        ("/etc/passwd", "msb: read archive /etc/passwd: "),
        ("/nonexistent.tar", "msb: read archive /nonexistent.tar: No such file or directory"),
    ] {
        let ran = home.run(&["load", "-q", "-i", archive, "-t", "broken"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{ran:?}");
        assert!(ran.stderr.starts_with(words), "{ran:?}");
        assert!(ran.stderr.contains("\nhint: "), "{ran:?}");
        home.check(&["image", "ls", "-q"], 0, "", "");
        assert!(layers(&home).is_empty(), "{:?}", layers(&home));
    }
    let loaded = home.run(&["load", "-q", "-i", text(&whole), "-t", "sound"]);
    assert_eq!(loaded.code, 0, "{loaded:?}");
}

fn layers(home: &Home) -> Vec<String> {
    let entries = fs::read_dir(home.path().join("images/layers")).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
