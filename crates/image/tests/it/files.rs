//! Files of an image, looked at without a machine.

use std::ffi::OsStr;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use microsandbox_image::{ArchiveSource, Error, FileKind, ImageFiles, ImageStore, Links, Silent};
use tempfile::TempDir;

use crate::hostile::docker_archive;
use crate::snapshot;
use crate::tarball::{directory, entry, file, hard_link, symlink, tarball};

fn files(layers: &[Vec<u8>]) -> Result<(TempDir, ImageFiles)> {
    let directory = TempDir::new()?;
    let source = ArchiveSource::Stream(Box::new(Cursor::new(docker_archive(layers))));
    let image = ImageStore::open(directory.path()).load(source, None, &Silent)?.remove(0);
    let files = image.files()?;
    // What a machine would see is the judge of the walk.
    let expected: Vec<_> = snapshot::of_image(&image)?
        .into_iter()
        .filter(|(path, _)| !path.is_empty())
        .map(|(path, node)| (Path::new("/").join(OsStr::from_bytes(&path)), node.size))
        .collect();
    let mut walked: Vec<_> = files
        .walk("")?
        .into_iter()
        .map(|(path, stat)| {
            let is_file = stat.kind == FileKind::File;
            (path, if is_file { stat.size_bytes } else { 0 })
        })
        .collect();
    walked.sort_by(|a, b| a.0.as_os_str().cmp(b.0.as_os_str()));
    assert_eq!(walked, expected);
    Ok((directory, files))
}

fn layers() -> Vec<Vec<u8>> {
    let below = tarball(&[
        directory("usr/"),
        directory("usr/lib/"),
        file("usr/lib/os-release", "NAME=below"),
        file("large", vec![9; 1_000_000]),
        file("gone", "x"),
        symlink("lib", "usr/lib"),
    ]);
    let above = tarball(&[
        file("usr/lib/os-release", "NAME=above").owner(5, 70_000).mode(0o4755).time(-2, 500),
        hard_link("usr/lib/twin", "usr/lib/os-release"),
        symlink("etc/os-release", "../usr/lib/os-release"),
        symlink("escape", "../../../../usr/lib/os-release"),
        symlink("absolute", "/lib/os-release"),
        symlink("loop", "loop"),
        symlink("dangling", "no/where"),
        symlink("here", "."),
        file(".wh.gone", ""),
        entry(b'3', "null").device(1, 3),
        entry(b'6', "fifo"),
        file("empty", ""),
        file("noted", "").xattr("user.note", b"1"),
        file(b"not\xffutf8", "bytes"),
    ]);
    vec![below, above]
}

#[test]
fn paths_are_resolved_inside_the_image() -> Result<()> {
    let (_store, files) = files(&layers())?;
    let read = |path: &str| -> Result<String> {
        let mut text = String::new();
        files.read(path)?.read_to_string(&mut text)?;
        Ok(text)
    };
    for path in [
        "usr/lib/os-release",
        "/usr/lib/twin",
        "lib/os-release",
        "etc/os-release",
        "escape",
        "absolute",
        "../../lib/../lib//./os-release",
        "here/here/lib/os-release",
    ] {
        assert_eq!(read(path)?, "NAME=above", "{path}");
    }
    assert_eq!(read("empty")?, "");
    for (path, reason) in [
        ("gone", "does not exist"),
        ("usr/none", "does not exist"),
        ("dangling", "does not exist"),
        ("loop", "too many symbolic links"),
        ("loop/x", "too many symbolic links"),
        ("large/x", "no directory"),
        ("large/", "no directory"),
        ("usr", "no ordinary file"),
        ("fifo", "no ordinary file"),
    ] {
        let Err(error @ Error::NoSuchFile { .. }) = files.read(path) else {
            anyhow::bail!("{path} was read")
        };
        let text = error.to_string();
        assert!(text.contains(reason) && text.contains("a:b"), "{path}: {text}");
    }
    let mut large = Vec::new();
    let mut reader = files.read("large")?;
    assert_eq!(reader.remaining_bytes(), 1_000_000);
    reader.read_to_end(&mut large)?;
    assert!(large == [9; 1_000_000]);
    Ok(())
}

#[test]
fn everything_about_a_file_is_told() -> Result<()> {
    let (_store, files) = files(&layers())?;
    let stat = files.stat("lib/os-release", Links::Follow)?;
    assert_eq!((stat.kind, stat.size_bytes), (FileKind::File, 10));
    assert_eq!((stat.permissions, stat.uid, stat.gid), (0o4755, 5, 70_000));
    let before = SystemTime::UNIX_EPOCH - Duration::from_secs(2) + Duration::from_nanos(500);
    assert_eq!(stat.modified, before);
    let kind = |path: &str, links| files.stat(path, links).map(|stat| stat.kind);
    assert_eq!(kind("lib", Links::Keep)?, FileKind::Symlink { target: "usr/lib".into() });
    assert_eq!(kind("lib", Links::Follow)?, FileKind::Directory);
    assert_eq!(kind("lib/", Links::Keep)?, FileKind::Directory);
    assert_eq!(kind("null", Links::Keep)?, FileKind::CharDevice { major: 1, minor: 3 });
    assert_eq!(kind("fifo", Links::Keep)?, FileKind::Fifo);
    assert_eq!(kind("/", Links::Keep)?, FileKind::Directory);
    assert_eq!(kind("..", Links::Follow)?, FileKind::Directory);
    let noted = files.stat("noted", Links::Keep)?;
    assert_eq!(noted.xattrs, [("user.note".into(), b"1".to_vec())]);

    let names: Vec<_> = files.list("/lib")?.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["os-release", "twin"]);
    assert!(files.list("")?.iter().any(|(name, _)| name.as_bytes() == b"not\xffutf8"));
    assert!(matches!(files.list("large"), Err(Error::NoSuchFile { .. })));
    assert!(matches!(files.walk("large"), Err(Error::NoSuchFile { .. })));
    Ok(())
}
