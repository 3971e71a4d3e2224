//! Directories of this host as images: what comes out is what was there.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::Result;
use microsandbox_image::{Error, ImageConfig, ImageStore, Silent};
use tempfile::TempDir;

use crate::hostile::files;
use crate::snapshot::{self, assert_same};
use crate::tools::{is_root, run, text};

/// A tree with everything that this user may make.
fn fill(root: &Path, is_root: bool) -> Result<()> {
    let deep = root.join("a/".repeat(60) + &"n".repeat(250));
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("file"), "deep")?;
    fs::write(root.join("file"), "content")?;
    fs::hard_link(root.join("file"), deep.join("link"))?;
    symlink("../nowhere/".to_owned() + &"t".repeat(300), root.join("dangling"))?;
    symlink("file", root.join("link"))?;
    fs::write(root.join("empty"), "")?;
    fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4711))?;
    xattr::set(root.join("file"), "user.note", b"binary\0\xff")?;
    xattr::set(root, "user.root", b"1")?;
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(8 << 20)?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"amid", 4 << 20)?;
    File::create(root.join("hole"))?.set_len(1 << 20)?;
    let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"not\xffutf8");
    fs::write(root.join(name), "bytes")?;
    run("touch", &["-d", "1960-01-02 03:04:05.25 UTC", text(&root.join("empty"))?])?;
    run("touch", &["-h", "-d", "2040-01-01 00:00:00.000000001 UTC", text(&root.join("link"))?])?;
    run("mkfifo", &[text(&root.join("fifo"))?])?;
    if is_root {
        run("mknod", &[text(&root.join("null"))?, "c", "1", "3"])?;
        run("mknod", &[text(&root.join("disk"))?, "b", "259", "70000"])?;
        std::os::unix::fs::chown(root.join("empty"), Some(3_000_000_000), Some(70_000))?;
        fs::set_permissions(root.join("empty"), fs::Permissions::from_mode(0o4711))?;
    }
    Ok(())
}

#[test]
fn a_directory_becomes_the_same_tree() -> Result<()> {
    let directory = TempDir::new()?;
    let root = directory.path().join("root");
    fs::create_dir(&root)?;
    fill(&root, is_root("device nodes and owners of a root directory"))?;
    let expected = snapshot::of_directory(&root)?;
    let socket = UnixListener::bind(root.join("socket"))?;
    drop(socket);
    // A directory's time is that of its last entry: the socket's.
    let mut expected = expected;
    let time = fs::metadata(&root)?;
    if let Some(node) = expected.get_mut(&b""[..]) {
        node.mtime = (time.mtime(), u32::try_from(time.mtime_nsec())?);
    }

    let store = ImageStore::open(directory.path().join("store"));
    let mut config = ImageConfig::default();
    config.cmd = vec!["sh".into()];
    config.env = vec!["A=1".into()];
    let image = store.load_directory(&root, &"mine:1".parse()?, &config, &Silent)?;
    assert_same(&snapshot::of_image(&image)?, &expected, "directory");
    assert_eq!((&image.config().cmd, &image.config().env), (&config.cmd, &config.env));
    assert_eq!(image.config().os, "linux");
    let layer = fs::metadata(&image.extents()[1].path)?;
    assert!(layer.blocks() * 512 < 1 << 20, "the holes are still holes");

    let before = files(store.root())?;
    let again = store.load_directory(&root, &"mine:1".parse()?, &config, &Silent)?;
    assert_eq!(again, image);
    assert_eq!(files(store.root())?, before, "the same directory is the same image");
    Ok(())
}

#[test]
fn a_directory_that_cannot_be_read_leaves_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    let root = directory.path().join("root");
    fs::create_dir(&root)?;
    let store = ImageStore::open(directory.path().join("store"));
    let load = |path: &Path| {
        store.load_directory(path, &"mine:1".parse()?, &ImageConfig::default(), &Silent)
    };
    for path in [&root.join("none"), Path::new("/proc/self/mem")] {
        let error = load(path);
        assert!(matches!(error, Err(Error::ReadRootfs { .. } | Error::Layer { .. })), "{error:?}");
        assert!(files(store.root())?.is_empty(), "{}", path.display());
    }
    // A whiteout of nothing cannot be part of an image.
    fs::write(root.join(".wh."), "")?;
    let error = load(&root);
    assert!(matches!(error, Err(Error::Layer { .. })), "{error:?}");
    assert!(files(store.root())?.is_empty());
    Ok(())
}
