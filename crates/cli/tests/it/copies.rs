//! `msb cp`: where copies go, tar streams, what is refused, what a kill leaves.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
};

use rustix::process::Signal;

use crate::home::Home;

/// A home with a sandbox named `box` that runs.
fn with_box() -> Home {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "box", "busybox"], 0, "box\n", "");
    home
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).into_os_string().into_string().unwrap()
}

#[test]
fn copies_go_where_docker_puts_them_and_come_back() {
    let home = with_box();
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| path(folder.path(), name);
    let cp = |from: &str, to: &str| home.check(&["cp", from, to], 0, "", "");
    let seen = |script: &str, expected: &str| {
        home.check(&["exec", "box", "--", "sh", "-c", script], 0, expected, "");
    };
    fs::create_dir_all(here("tree/sub")).unwrap();
    fs::write(here("tree/sub/f"), "text").unwrap();
    fs::write(here("tree/run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(here("tree/run"), fs::Permissions::from_mode(0o750)).unwrap();

    cp(&here("tree/run"), "box:/root/new");
    cp(&here("tree/run"), "box:/root");
    cp(&here("tree"), "box:/root");
    cp(&here("tree"), "box:/root/copy");
    cp(&format!("{}/.", here("tree")), "box:/root/copy/sub");
    seen(
        "cd /root; find . -type f | sort; stat -c '%a %u' new",
        "./copy/run\n./copy/sub/f\n./copy/sub/run\n./copy/sub/sub/f\n./new\n./run\n\
         ./tree/run\n./tree/sub/f\n750 0\n",
    );
    cp("box:/root/tree", &here("back"));
    assert_eq!(fs::read_to_string(here("back/sub/f")).unwrap(), "text");
    cp("box:root/tree/sub/f", folder.path().to_str().unwrap());
    assert_eq!(fs::read_to_string(here("f")).unwrap(), "text");
    cp("box:/root/tree/run", "box:/root/again");
    seen("cat /root/again", "#!/bin/sh\n");
}

#[test]
fn tar_streams_go_both_ways() {
    let home = with_box();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    fs::write(folder.path().join("d/f"), "text").unwrap();
    let mut tar = Command::new("tar")
        .args(["-C", folder.path().to_str().unwrap(), "-cf", "-", "d"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stream = tar.stdout.take().unwrap();
    let ran = home.end(home.msb(&["cp", "-", "box:/root"]).stdin(stream));
    assert!(tar.wait().unwrap().success());
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    let out = fs::File::create(folder.path().join("out.tar")).unwrap();
    let status = home.msb(&["cp", "box:/root/d", "-"]).stdout(out).status().unwrap();
    assert!(status.success());
    let list = Command::new("tar")
        .args(["-tf", folder.path().join("out.tar").to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout), "d/\nd/f\n");
    let mut garbage = home.msb(&["cp", "-", "box:/root"]);
    fs::write(folder.path().join("garbage"), [b'x'; 2000]).unwrap();
    let ran = home.end(garbage.stdin(fs::File::open(folder.path().join("garbage")).unwrap()));
    let expected = "msb: read the tar stream at byte 512: no tar header in the guest\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (125, expected));
}

#[test]
fn what_cannot_be_copied_is_said_in_one_line() {
    let home = with_box();
    let folder = tempfile::tempdir().unwrap();
    let here = |name: &str| path(folder.path(), name);
    fs::create_dir(here("d")).unwrap();
    fs::write(here("f"), "text").unwrap();
    let refused = |from: &str, to: &str, stderr: &str| {
        home.check(&["cp", from, to], 125, "", &format!("msb: {stderr}\n"));
    };
    refused(
        &here("f"),
        &here("g"),
        "copy: one of SOURCE and DESTINATION is in a sandbox, as NAME:PATH",
    );
    refused("box:/none", &here("x"), "look at /none in the guest: No such file or directory");
    refused(&here("f"), "box:/none/f", "open /none in the guest: No such file or directory");
    let to_file = format!("copy the directory {} to /etc/passwd: that is a file", here("d"));
    refused(&here("d"), "box:/etc/passwd", &to_file);
    let no_directory = format!("copy {} to /root/none/: there is no such directory", here("f"));
    refused(&here("f"), "box:/root/none/", &no_directory);
    home.check(&["stop", "-f", "box"], 0, "box\n", "");
    refused(
        &here("f"),
        "box:/root",
        "sandbox 'box' is not running (status: Stopped)\nhint: msb start box",
    );
}

#[test]
fn a_copy_that_is_killed_leaves_nothing() {
    let home = with_box();
    let folder = tempfile::tempdir().unwrap();
    let script = "head -c 30000000 /dev/zero | tr '\\0' x > /root/big; echo made";
    home.check(&["exec", "box", "--", "sh", "-c", script], 0, "made\n", "");
    let to = path(folder.path(), "copy");
    let running = home.start(&["cp", "box:/root/big", &to]);
    running.signal(Signal::KILL);
    assert_eq!(running.end().code, 137);
    assert!(!Path::new(&to).exists());

    let mut into = home.start(&["cp", "-", "box:/root"]);
    // The header of a file of 64 MiB whose bytes never come.
    let mut header = vec![0_u8; 512];
    header[..4].copy_from_slice(b"late");
    header[100..108].copy_from_slice(b"0000644\0");
    header[108..116].copy_from_slice(b"0000000\0");
    header[116..124].copy_from_slice(b"0000000\0");
    header[124..136].copy_from_slice(b"00400000000\0");
    header[136..148].copy_from_slice(b"00000000000\0");
    header[148..156].copy_from_slice(b"        ");
    header[156] = b'0';
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    into.write(&String::from_utf8(header).unwrap());
    into.write(&"x".repeat(1 << 20));
    let wait = "until ps | grep -q '[a]gentd files'; do usleep 20000; done; echo runs";
    home.check(&["exec", "--timeout", "60s", "box", "--", "sh", "-c", wait], 0, "runs\n", "");
    into.signal(Signal::KILL);
    assert_eq!(into.end().code, 137);
    let wait = "while ps | grep -q '[a]gentd files'; do usleep 20000; done; ls -A /root";
    home.check(&["exec", "--timeout", "60s", "box", "--", "sh", "-c", wait], 0, "big\n", "");
}
