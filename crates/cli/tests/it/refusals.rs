//! Bad input: one line that names the thing and the remedy, 125, and nothing left behind.

use std::{fs, os::unix::fs::chown, process::Stdio};

use crate::home::Home;

/// Checks that a command failed with these words and left nothing.
#[track_caller]
fn refused(home: &Home, arguments: &[&str], stderr: &str) {
    home.check(arguments, 125, "", stderr);
    assert_eq!(home.residue(), Vec::<String>::new(), "msb {}", arguments.join(" "));
}

#[test]
fn names_and_images_that_cannot_be() {
    let home = Home::with_busybox();
    refused(
        &home,
        &["create", "--name", "../up", "busybox"],
        "msb: invalid config: sandbox name \"../up\" must not begin with '.' or '-' nor contain '/' \
         or control characters\n",
    );
    refused(
        &home,
        &["run", "--pull", "never", "nothing:here", "--", "true"],
        "msb: image docker.io/library/nothing:here is not in the local store\n\
         hint: pull or load the image first, or allow pulling\n",
    );
    refused(
        &home,
        &["run", "Upper", "--", "true"],
        "msb: \"Upper\" is not an image reference: the name must be lower case\n\
         hint: write an image as [REGISTRY/]NAME[:TAG][@sha256:DIGEST], for example debian:12\n",
    );
    let unreachable = home.run(&["run", "127.0.0.1:1/team/app", "--", "true"]);
    assert_eq!((unreachable.code, unreachable.stdout.as_str()), (125, ""));
    let lines: Vec<&str> = unreachable.stderr.lines().collect();
    assert!(
        lines[0].starts_with(
            "msb: fetch the manifest of 127.0.0.1:1/team/app:latest: reach registry 127.0.0.1:1: "
        ),
        "{lines:?}"
    );
    let hint = "hint: check that 127.0.0.1:1 is right and reachable from this machine";
    assert_eq!(lines[1..], [hint]);
    for arguments in [&["stop", "no"][..], &["start", "no"], &["rm", "no"], &["exec", "no", "id"]] {
        let stderr =
            "msb: no sandbox is named 'no'\nhint: `msb ls` shows the sandboxes there are\n";
        refused(&home, arguments, stderr);
    }
    refused(
        &home,
        &["run", "--memory", "1", "busybox"],
        "msb: invalid config: a sandbox needs at least 64 MiB of memory\n",
    );
}

#[test]
fn name_that_is_taken() {
    let home = Home::with_busybox();
    home.check(&["create", "-q", "--name", "a", "busybox"], 0, "a\n", "");
    let taken = home.run(&["create", "--name", "a", "busybox"]);
    assert_eq!((taken.code, taken.stdout.as_str()), (125, ""));
    assert!(taken.stderr.starts_with("msb: sandbox 'a' already exists"), "{taken:?}");
    assert!(taken.stderr.ends_with("hint: msb rm a\n"), "{taken:?}");
    home.check(&["exec", "a", "--", "echo", "unharmed"], 0, "unharmed\n", "");
    home.check(&["rm", "-f", "a"], 0, "a\n", "");
}

#[test]
fn machinery_that_is_missing() {
    let home = Home::with_busybox();
    let run = ["run", "-q", "busybox", "--", "true"];
    let check = |setting: &str, value: &str, stderr: &str| {
        let ran = home.end(home.msb(&run).env(setting, value).stdin(Stdio::null()));
        assert_eq!((ran.code, ran.stdout.as_str()), (125, ""));
        assert_eq!(ran.stderr, stderr);
        assert_eq!(home.residue(), Vec::<String>::new());
    };
    check(
        "MSB_KERNEL",
        "/nonexistent/vmlinux",
        "msb: find the guest kernel at /nonexistent/vmlinux\n\
         hint: run `cargo xtask setup`, or name a kernel with MSB_KERNEL\n",
    );
    check(
        "MSB_VMM",
        "vmware",
        "msb: invalid config: MSB_VMM is \"vmware\", not auto, libkrun or qemu\n",
    );
    let empty = tempfile::tempdir().unwrap();
    let ran = home.end(home.msb(&run).env("MSB_VMM", "qemu").env("PATH", empty.path()));
    let stderr = "msb: use qemu: no qemu-system-x86_64 in PATH\n\
                  hint: install QEMU: apt-get install qemu-system-x86\n";
    assert_eq!((ran.code, ran.stderr.as_str()), (125, stderr));

    fs::remove_file(home.path().join("guest/current")).unwrap();
    let ran = home.run(&run);
    assert_eq!(ran.code, 125);
    assert!(ran.stderr.starts_with("msb: find the guest kernel at [HOME]/guest/"), "{ran:?}");
    assert_eq!(home.residue(), Vec::<String>::new());
}

/// Only root can make a home another's, and only to root it matters.
#[test]
fn root_in_the_home_of_another() {
    let home = Home::with_busybox();
    if chown(home.path(), Some(1234), None).is_err() {
        return;
    }
    let refusal = "msb: run sandboxes as root in [HOME], which belongs to user 1234\n\
                   hint: run it as that user (sudo -u '#1234'), or with a home of root's own \
                   (MSB_HOME): the processes of a sandbox have no privileges, not even root's\n";
    refused(&home, &["run", "-q", "busybox", "--", "true"], refusal);
    home.check(&["ls", "-q"], 0, "", "");
}

#[test]
fn guest_that_dies_while_booting() {
    let home = Home::with_busybox();
    // An archive of nothing but its end: a kernel without /init.
    let mut archive = b"070701".to_vec();
    archive.extend([b"00000000".as_slice(); 11].concat());
    archive.extend(b"0000000b");
    archive.splice(archive.len() - 16..archive.len(), *b"0000000b00000000");
    archive.extend(b"TRAILER!!!\0\0\0\0");
    let guest = home.path().join("guest/broken");
    fs::create_dir(&guest).unwrap();
    fs::write(guest.join("initramfs.cpio"), archive).unwrap();
    std::os::unix::fs::symlink(home.path().join("guest/test/vmlinux"), guest.join("vmlinux"))
        .unwrap();
    fs::write(home.path().join("guest/current"), "broken").unwrap();

    for arguments in
        [&["run", "-q", "busybox", "--", "true"][..], &["create", "-q", "--name", "a", "busybox"]]
    {
        let ran = home.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{ran:?}");
        let lines: Vec<&str> = ran.stderr.lines().collect();
        assert!(lines[0].starts_with("msb: sandbox '"), "{lines:?}");
        assert!(lines[0].contains("did not start: "), "{lines:?}");
        assert!(lines[0].contains("panic"), "{lines:?}");
        assert!(lines[1].starts_with("hint: "), "{lines:?}");
        assert!(lines[2..].iter().all(|line| line.starts_with("console: ")), "{lines:?}");
        assert!(lines[2..].iter().any(|line| line.contains("Kernel panic")), "{lines:?}");
        assert_eq!(home.residue(), Vec::<String>::new(), "{ran:?}");
    }

    let ran = home.end(
        home.msb(&["run", "-q", "busybox", "--", "true"])
            .env("MSB_KERNEL", "/etc/hostname")
            .stdin(Stdio::null()),
    );
    assert_eq!(ran.code, 125);
    assert!(ran.stderr.contains("did not start: "), "{ran:?}");
    assert_eq!(home.residue(), Vec::<String>::new());
}

#[test]
fn command_lines_that_cannot_be_read() {
    let home = Home::with_guest();
    for arguments in [
        &["frobnicate"][..],
        &["run"],
        &["run", "--memory", "lots", "busybox"],
        &["exec", "a"],
        &["stop", "-t", "soon", "a"],
        &["create", "busybox"],
    ] {
        let ran = home.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (125, ""), "{arguments:?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:?}");
    }
    let help = home.run(&["--help"]);
    assert_eq!((help.code, help.stderr.as_str()), (0, ""));
}
