//! Files: every call with its contents and error numbers, trees both ways, enemies, full disks.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use chrono::DateTime;
use libtest_mimic::Trial;
use microsandbox::{
    FsCopyOptions, FsEntryKind, FsError, FsSetAttrs, MicrosandboxError, MicrosandboxResult, Sandbox,
};

use crate::{sandbox, trial};

#[path = "../../examples/files.rs"]
mod example;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        Trial::test("files::the_example_does_what_it_shows", || {
            example::main().map_err(|error| format!("{error:?}").into())
        }),
        trial("files::every_call_does_what_it_says_and_fails_with_its_errno", every_call),
        trial("files::streams_carry_any_length_and_a_dropped_one_changes_nothing", streams),
        trial("files::a_tree_of_ten_thousand_files_comes_back_as_it_was", ten_thousand),
        trial("files::links_holes_modes_and_times_survive_both_ways", fidelity),
        trial("files::a_hostile_stream_is_refused", hostile),
        trial("files::a_full_disk_is_told_and_nothing_is_left", full_disk),
        trial("files::a_tree_goes_from_sandbox_to_sandbox", between_sandboxes),
    ]
}

fn fs_error<T: std::fmt::Debug>(result: MicrosandboxResult<T>) -> Result<FsError> {
    match result {
        Err(MicrosandboxError::SandboxFs(error)) => Ok(error),
        other => bail!("{other:?}"),
    }
}

/// The call fails with this error number, on this path.
fn check_errno<T: std::fmt::Debug>(
    result: MicrosandboxResult<T>,
    errno: i32,
    path: &str,
) -> Result<()> {
    let error = fs_error(result)?;
    ensure!((error.errno, error.path.as_path()) == (Some(errno), Path::new(path)), "{error:?}");
    Ok(())
}

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENOTDIR: i32 = 20;
const EISDIR: i32 = 21;
const EINVAL: i32 = 22;
const ENOSPC: i32 = 28;
const ENOTEMPTY: i32 = 39;

async fn every_call() -> Result<()> {
    let sandbox = sandbox("every-call").create().await?;
    reading_and_writing(&sandbox).await?;
    names_and_directories(&sandbox).await?;
    attributes(&sandbox).await?;
    sandbox.stop().await?;
    Ok(())
}

async fn reading_and_writing(sandbox: &Sandbox) -> Result<()> {
    let fs = sandbox.fs();
    fs.write("/root/f", "first").await?;
    ensure!(fs.read_to_string("/root/f").await? == "first");
    ensure!(sandbox.shell("stat -c '%a %u' /root/f").await?.stdout()? == "644 0\n");
    // What takes a file's place has its mode and owner, and is another file.
    let before = "chmod 640 /root/f; chown 7:8 /root/f; ln /root/f /root/other";
    ensure!(sandbox.shell(before).await?.status().success);
    fs.write("/root/f", vec![b'x'; 3_000_000]).await?;
    let after = sandbox.shell("stat -c '%a %u %g %s' /root/f; cat /root/other").await?.stdout()?;
    ensure!(after == "640 7 8 3000000\nfirst", "{after}");
    fs.append("/root/other", " and second").await?;
    ensure!(fs.read("/root/other").await? == "first and second");
    ensure!(fs.read_range("/root/other", 6, 3).await? == "and");
    ensure!(fs.read("/proc/version").await?.starts_with(b"Linux"));
    // Devices are written to, not replaced; a link stands for its target.
    fs.write("/dev/null", "gone").await?;
    fs.symlink("other", "/root/link").await?;
    fs.write("/root/link", "through").await?;
    ensure!(fs.read("/root/other").await? == "through");
    ensure!(fs.read_link("/root/link").await? == Path::new("other"));
    ensure!(fs.stat_link("/root/link").await?.kind == FsEntryKind::Symlink);
    check_errno(fs.read("/root/none").await, ENOENT, "/root/none")?;
    check_errno(fs.read("/root").await, EISDIR, "/root")?;
    check_errno(fs.write("/root", "x").await, EISDIR, "/root")?;
    check_errno(fs.write("/root/f/g", "x").await, ENOTDIR, "/root/f/g")?;
    check_errno(fs.write("/none/f", "x").await, ENOENT, "/none/f")?;
    check_errno(fs.read_link("/root/f").await, EINVAL, "/root/f")?;
    let nul = fs_error(fs.read("a\0b").await)?;
    ensure!(nul.errno == Some(EINVAL), "{nul:?}");
    let long = fs_error(fs.read("x/".repeat(3000)).await)?;
    ensure!(long.errno == Some(EINVAL), "{long:?}");
    Ok(())
}

async fn names_and_directories(sandbox: &Sandbox) -> Result<()> {
    let fs = sandbox.fs();
    fs.mkdir("/root/a/b/c").await?;
    fs.mkdir("/root/a/b/c").await?;
    fs.write("/root/a/f", "f").await?;
    fs.symlink("/etc", "/root/a/etc").await?;
    let names = |entries: Vec<microsandbox::FsEntry>| {
        entries.into_iter().map(|entry| (entry.path, entry.kind)).collect::<Vec<_>>()
    };
    let listed = names(fs.list("/root/a").await?);
    ensure!(
        listed
            == [
                ("/root/a/b".to_owned(), FsEntryKind::Directory),
                ("/root/a/etc".to_owned(), FsEntryKind::Symlink),
                ("/root/a/f".to_owned(), FsEntryKind::File),
            ],
        "{listed:?}"
    );
    fs.copy("/root/a", "/root/copy").await?;
    ensure!(fs.read("/root/copy/f").await? == "f");
    ensure!(fs.read_link("/root/copy/etc").await? == Path::new("/etc"));
    fs.rename("/root/copy/f", "/root/copy/g").await?;
    ensure!(!fs.exists("/root/copy/f").await? && fs.exists("/root/copy/g").await?);
    ensure!(!fs.exists("/root/copy/g/x").await?);
    check_errno(fs.list("/root/copy/g").await, ENOTDIR, "/root/copy/g")?;
    check_errno(fs.copy("/root/a", "/root/a/b/self").await, EINVAL, "/root/a/b/self")?;
    check_errno(fs.remove("/root/a").await, EISDIR, "/root/a")?;
    check_errno(fs.remove_empty_dir("/root/a").await, ENOTEMPTY, "/root/a")?;
    check_errno(fs.remove_dir("/root/a/etc").await, ENOTDIR, "/root/a/etc")?;
    check_errno(fs.mkdir("/root/a/f").await, EEXIST, "/root/a/f")?;
    check_errno(fs.symlink("x", "/root/a/f").await, EEXIST, "/root/a/f")?;
    check_errno(fs.rename("/root/none", "/root/x").await, ENOENT, "/root/none")?;
    // A directory goes with its links, not with what they lead to.
    fs.remove_dir("/root/a").await?;
    ensure!(!fs.exists("/root/a").await? && fs.exists("/etc/passwd").await?);
    fs.remove("/root/copy/etc").await?;
    fs.remove("/root/copy/g").await?;
    fs.remove_dir("/root/copy").await?;
    // Ten thousand names in one answer.
    let many = "mkdir /root/many; cd /root/many; for i in $(seq 10000); do : > name-$i; done";
    ensure!(sandbox.shell(many).await?.status().success);
    ensure!(fs.list("/root/many").await?.len() == 10_000);
    fs.remove_dir("/root/many").await?;
    Ok(())
}

async fn attributes(sandbox: &Sandbox) -> Result<()> {
    let fs = sandbox.fs();
    fs.write("/root/f", "text").await?;
    let modified = DateTime::from_timestamp(1_000_000_000, 987_654_321);
    let attrs = FsSetAttrs {
        size: Some(1000),
        uid: Some(5),
        gid: Some(6),
        mode: Some(0o4711),
        accessed: DateTime::from_timestamp(-5, 0),
        modified,
    };
    fs.set_attrs("/root/f", attrs).await?;
    let stat = fs.stat("/root/f").await?;
    ensure!((stat.kind, stat.size, stat.mode) == (FsEntryKind::File, 1000, 0o4711), "{stat:?}");
    ensure!((stat.uid, stat.gid, stat.links, stat.readonly) == (5, 6, 1, false), "{stat:?}");
    ensure!((stat.modified, stat.accessed) == (modified, attrs.accessed), "{stat:?}");
    check_errno(fs.stat("/root/none").await, ENOENT, "/root/none")?;
    check_errno(fs.set_attrs("/none", attrs).await, ENOENT, "/none")
}

async fn streams() -> Result<()> {
    let sandbox = sandbox("file-streams").create().await?;
    let fs = sandbox.fs();
    let sink = fs.write_stream("/root/big").await?;
    let piece: Vec<u8> = (0..1_000_003_u32).map(|i| (i % 253) as u8).collect();
    for _ in 0..20 {
        sink.write(&piece).await?;
    }
    ensure!(!fs.exists("/root/big").await?, "it is there before its end");
    sink.close().await?;
    let mut stream = fs.read_stream("/root/big").await?;
    let (mut len, mut at) = (0_usize, 0);
    while let Some(bytes) = stream.recv().await? {
        for byte in &bytes {
            ensure!(*byte == piece[at], "another byte at {len}");
            at = (at + 1) % piece.len();
        }
        len += bytes.len();
    }
    ensure!(len == 20 * piece.len(), "{len}");

    // One reader that stops holds nobody up.
    let stalled = fs.read_stream("/dev/zero").await?;
    ensure!(fs.read("/root/big").await?.len() == len);
    drop(stalled);
    // A sink that is dropped leaves the file as it was, and nothing beside it.
    let sink = fs.write_stream("/root/big").await?;
    sink.write(&piece).await?;
    drop(sink);
    let sink = fs.write_stream("/root/new").await?;
    sink.write(&piece).await?;
    drop(sink);
    let gone = "while ps | grep -q '[a]gentd files'; do usleep 20000; done; ls -A /root";
    ensure!(sandbox.shell(gone).await?.stdout()? == "big\n");
    ensure!(fs.stat("/root/big").await?.size == len as u64);
    sandbox.stop().await?;
    Ok(())
}

/// What is compared of a file: mode, time, length, contents.
type Facts = (u32, i64, i64, u64, Vec<u8>);

fn manifest(root: &Path) -> Result<BTreeMap<PathBuf, Facts>> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let stat = fs::symlink_metadata(&path)?;
            let (size, contents) = if stat.is_dir() {
                open.push(path.clone());
                (0, Vec::new())
            } else if stat.is_symlink() {
                (0, fs::read_link(&path)?.into_os_string().into_encoded_bytes())
            } else {
                (stat.len(), fs::read(&path)?)
            };
            let facts = (stat.mode(), stat.mtime(), stat.mtime_nsec(), size, contents);
            found.insert(path.strip_prefix(root)?.to_owned(), facts);
        }
    }
    Ok(found)
}

async fn ten_thousand() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let from = folder.path().join("from");
    for directory in 0..100 {
        let directory_path = from.join(format!("d{directory}"));
        fs::create_dir_all(&directory_path)?;
        for file in 0..100 {
            fs::write(directory_path.join(format!("f{file}")), format!("{directory}/{file}\n"))?;
        }
    }
    let sandbox = sandbox("ten-thousand").create().await?;
    sandbox.fs().copy_from_host(&from, "/root/tree").await?;
    let seen = sandbox.shell("find /root/tree -type f | wc -l; cat /root/tree/d42/f17").await?;
    ensure!(seen.stdout()?.trim_start() == "10000\n42/17\n", "{seen:?}");
    sandbox.fs().copy_to_host("/root/tree", folder.path().join("to")).await?;
    ensure!(manifest(&folder.path().join("to"))? == manifest(&from)?);
    sandbox.stop().await?;
    Ok(())
}

async fn fidelity() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let from = folder.path().join("from");
    fs::create_dir_all(from.join("sub"))?;
    fs::write(from.join("f"), "text")?;
    fs::write(from.join("run"), "#!/bin/sh\n")?;
    fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o751))?;
    symlink("../f", from.join("sub/up"))?;
    symlink("/nowhere", from.join("dangling"))?;
    fs::hard_link(from.join("f"), from.join("sub/same"))?;
    let holes = File::create(from.join("holes"))?;
    holes.set_len(300 << 20)?;
    holes.write_all_at(b"middle", 100 << 20)?;
    let sandbox = sandbox("both-ways").create().await?;
    let fs = sandbox.fs();
    fs.copy_from_host(&from, "/root/tree").await?;
    let facts = "cd /root/tree; stat -c %a run; readlink sub/up; stat -c %h f; stat -c %u f; \
                 [ $(stat -c %b holes) -lt 2048 ] && stat -c %s holes";
    let seen = sandbox.shell(facts).await?.stdout()?;
    ensure!(seen == format!("751\n../f\n2\n0\n{}\n", 300 << 20), "{seen}");
    let to = folder.path().join("to");
    fs.copy_to_host("/root/tree", &to).await?;
    ensure!(manifest(&to)? == manifest(&from)?);
    ensure!(fs::metadata(to.join("holes"))?.blocks() < 2048, "holes stay holes");
    ensure!(fs::metadata(to.join("f"))?.ino() == fs::metadata(to.join("sub/same"))?.ino());

    // A file alone, under another name and over one that is there.
    fs.copy_to_host("/root/tree/run", folder.path().join("run")).await?;
    fs.copy_to_host("/root/tree/f", folder.path().join("run")).await?;
    ensure!(fs::read_to_string(folder.path().join("run"))? == "text");
    // A link stands for its target unless it is asked for itself.
    fs.copy_to_host("/root/tree/sub/up", folder.path().join("target")).await?;
    ensure!(fs::symlink_metadata(folder.path().join("target"))?.is_file());
    let itself = FsCopyOptions::default().keep_links();
    fs.copy_to_host_with("/root/tree/sub/up", folder.path().join("link"), &itself).await?;
    ensure!(fs::read_link(folder.path().join("link"))? == Path::new("../f"));

    let missing = fs.copy_from_host(folder.path().join("none"), "/root/x").await;
    match missing {
        Err(MicrosandboxError::Copy(error)) => {
            ensure!(error.io().is_some_and(|error| error.kind() == io::ErrorKind::NotFound));
        }
        other => bail!("{other:?}"),
    }
    check_errno(fs.copy_to_host("/none", folder.path().join("x")).await, ENOENT, "/none")?;
    check_errno(fs.copy_from_host(&from, "/none/x").await, ENOENT, "/none")?;
    ensure!(!folder.path().join("x").exists());
    sandbox.stop().await?;
    Ok(())
}

/// Streams made by a root of the guest who means harm reach the host as archives of the agent would.
async fn hostile() -> Result<()> {
    let sandbox = sandbox("hostile").create().await?;
    let fs = sandbox.fs();
    let script = "mkdir -p /root/t/d && cd /root/t && mknod dev c 1 3 && ln -s /etc link";
    ensure!(sandbox.shell(script).await?.status().success);
    let folder = tempfile::tempdir()?;
    let to = folder.path().join("t");
    match fs.copy_to_host("/root/t", &to).await {
        Err(MicrosandboxError::Copy(microsandbox::ArchiveError::Refused { path, .. })) => {
            ensure!(path == Path::new("t/dev"), "{path:?}");
        }
        other => bail!("{other:?}"),
    }
    // A stream from anywhere is held to the directory it is unpacked in, in the guest, too.
    let evil = "mkdir /root/e && cd /root/e && echo evil > x && tar cf /root/evil.tar x";
    ensure!(sandbox.shell(evil).await?.status().success);
    let mut stream = fs.read("/root/evil.tar").await?.to_vec();
    // The member's name becomes `../passwd`, with the checksum that belongs to it.
    stream[..10].copy_from_slice(b"../passwd\0");
    stream[148..156].copy_from_slice(b"        ");
    let sum: u32 = stream[..512].iter().map(|byte| u32::from(*byte)).sum();
    stream[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let sink = fs.unpack("/root/t").await?;
    let done = match sink.write(&stream).await {
        Ok(()) => sink.close().await,
        failed => failed,
    };
    let refused = fs_error(done)?;
    ensure!(refused.path == Path::new("../passwd"), "{refused:?}");
    ensure!(!fs.exists("/root/passwd").await?);
    sandbox.stop().await?;
    Ok(())
}

async fn full_disk() -> Result<()> {
    let sandbox = sandbox("full-of-files").create().await?;
    let fs = sandbox.fs();
    let small = "mkdir /root/small && mount -t tmpfs -o size=1m none /root/small";
    ensure!(sandbox.shell(small).await?.status().success);
    let data = vec![7; 8 << 20];
    check_errno(fs.write("/root/small/f", &data).await, ENOSPC, "/root/small/f")?;
    let folder = tempfile::tempdir()?;
    fs::write(folder.path().join("f"), &data)?;
    let copied = fs.copy_from_host(folder.path().join("f"), "/root/small/f").await;
    check_errno(copied, ENOSPC, "/root/small/f")?;
    ensure!(fs.list("/root/small").await?.is_empty(), "nothing half-written is left");
    ensure!(sandbox.shell("df /root/small | tail -1 | awk '{print $3}'").await?.stdout()? == "0\n");
    sandbox.stop().await?;
    Ok(())
}

async fn between_sandboxes() -> Result<()> {
    let (one, other) = (sandbox("one").create().await?, sandbox("other").create().await?);
    let script =
        "mkdir -p /root/t/d && echo x > /root/t/d/f && ln -s d /root/t/l && chown 9 /root/t/d/f";
    ensure!(one.shell(script).await?.status().success);
    let owned = FsCopyOptions::default().keep_owners();
    one.fs().copy_to_sandbox("/root/t", other.fs(), "/root/u", &owned).await?;
    let seen = other.shell("cat /root/u/l/f; stat -c %u /root/u/d/f").await?.stdout()?;
    ensure!(seen == "x\n9\n", "{seen}");
    one.stop().await?;
    other.stop().await?;
    Ok(())
}
