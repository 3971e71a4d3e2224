//! An image holds what `umoci unpack` leaves on a disk: every name, attribute and byte.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use microsandbox_image::{ArchiveSource, BlockSize, Image, ImageStore, Silent};
use tempfile::TempDir;

use crate::snapshot::{self, Snapshot, assert_same};
use crate::tarball::{Item, directory, entry, file, hard_link, symlink, tarball};
use crate::tools::{Mount, is_root, layout, run, text};

/// A POSIX ACL as the kernel stores it: version 2; owner, user 1000, group, mask, others.
pub(crate) const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 232, 3, 0, 0, 4, 0, 4, 0, 255, 255,
    255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 4, 0, 255, 255, 255, 255,
];

/// `cap_net_raw=ep`, as `setcap` stores it.
pub(crate) const CAPABILITY: [u8; 20] =
    [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Layers that between them use everything a layer may say.
fn layers() -> Vec<Vec<u8>> {
    let long_name = "n".repeat(255);
    let deep = format!("{}/leaf", ["deep-directory"; 30].join("/"));
    let mut base: Vec<Item> = vec![
        directory("./").mode(0o755).time(1_600_000_000, 5),
        directory("etc/").time(1_600_000_001, 0),
        file("etc/passwd", "root:x:0:0\n").time(1_600_000_002, 123_456_789),
        file("etc/shadow", "secret").mode(0o640).owner(0, 42),
        directory("bin/"),
        file("bin/tool", [7; 1500]).mode(0o4755).xattr("security.capability", &CAPABILITY),
        hard_link("bin/tool-again", "bin/tool")
            .mode(0o4755)
            .xattr("security.capability", &CAPABILITY),
        hard_link("a-first-name", "./bin/tool-again")
            .mode(0o4755)
            .xattr("security.capability", &CAPABILITY),
        directory("usr/"),
        directory("usr/lib/"),
        symlink("lib", "usr/lib"),
        file("usr/lib/a.so", vec![1; 70_001]),
        directory("tmp/").mode(0o1777),
        directory("home/").mode(0o2750).owner(70_000, 4_000_000_000),
        file("home/old", "before the epoch").time(-86_400, 0),
        file("home/older", "and a fraction").time(-3, 250_000_000),
        file("home/acl", "acl").mode(0o664).xattr("system.posix_acl_access", &ACL),
        file("home/notes", "x")
            .xattr("user.empty", b"")
            .xattr("user.binary", b"a=\n\0b")
            .xattr("trusted.large", &[9; 3000]),
        file("empty", ""),
        file(&long_name, "255 bytes of name"),
        file(b"caf\xe9 \x01\n", "not UTF-8"),
        file(&deep, "far down"),
        symlink("short-link", "/etc/passwd"),
        symlink("long-link", "t".repeat(700)),
        symlink("longest-link", "u/".repeat(2047)),
        directory("dev/"),
        entry(b'3', "dev/null").device(1, 3).mode(0o666),
        entry(b'4', "dev/disk").device(259, 70_000).owner(0, 6),
        entry(b'6', "dev/fifo"),
        directory("gone/"),
        file("gone/child", "x"),
        directory("half/"),
        file("half/gone", "x"),
        file("half/kept", "y"),
        directory("opaque/").mode(0o700),
        file("opaque/hidden", "x"),
        file("opaque/again", "old"),
        file("file-then-directory", "x"),
        directory("directory-then-file/"),
        file("directory-then-file/child", "x"),
        file("pair-1", "shared").time(1_600_000_009, 0),
        hard_link("pair-2", "pair-1").time(1_600_000_009, 0),
        directory("many/"),
    ];
    // `+`, `,` and `-` sort before the dots, and this many names fill many directory blocks.
    for index in 0..600 {
        let first = ["+", ",", "-", ".", "..", "/", "0", "a"][index % 8].replace('/', "~");
        base.push(file(format!("many/{first}{index:03}-{}", "m".repeat(index % 90)), "m"));
    }
    let changes = vec![
        file(".wh.gone", ""),
        file("half/.wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/again", "new"),
        file("opaque/new", "new"),
        directory("file-then-directory/").mode(0o711),
        file("file-then-directory/inner", "x"),
        file("directory-then-file", "now a file"),
        file("lib/b.so", "lands in usr/lib"),
        file("etc/added", "its directory is not described"),
        file("pair-1", "alone"),
        file("nowhere/.wh.nothing", ""),
        directory("tmp/").mode(0o777).time(1_650_000_000, 1).xattr("user.again", b"yes"),
        hard_link("linked-across", "usr/lib/a.so"),
        file("twice", "first"),
        file("twice", "last").mode(0o600),
    ];
    let deletes = vec![file(".wh.empty", ""), file("etc/.wh.shadow", "")];
    let back = vec![
        file(".wh.directory-then-file", ""),
        directory("directory-then-file/"),
        file("directory-then-file/new-child", "x"),
        directory("gone/"),
        file("gone/returned", "x"),
    ];
    [base, changes, Vec::new(), deletes, back].iter().map(|items| tarball(items)).collect()
}

pub(crate) fn load(store: &TempDir, layout: &TempDir, block_size: BlockSize) -> Result<Image> {
    let store = ImageStore::open(store.path()).with_block_size(block_size);
    let source = ArchiveSource::Path(layout.path().join("layout"));
    Ok(store.load(source, Some(&"fidelity".parse()?), &Silent)?.remove(0))
}

pub(crate) fn raw_disk(image: &Image, directory: &TempDir) -> Result<std::path::PathBuf> {
    let raw = directory.path().join("disk.raw");
    run("qemu-img", &["convert", "-O", "raw", text(image.disk())?, text(&raw)?])?;
    Ok(raw)
}

pub(crate) fn unpacked(layout: &TempDir) -> Result<Snapshot> {
    let bundle = layout.path().join("bundle");
    let image = format!("{}:latest", text(&layout.path().join("layout"))?);
    run("umoci", &["unpack", "--image", &image, text(&bundle)?])?;
    snapshot::of_directory(&bundle.join("rootfs"))
}

/// Unpacking leaves the present time on directories that no entry describes, and on the root. What an image has
/// there instead is told here.
pub(crate) fn take_known_times(
    expected: &mut Snapshot,
    actual: &Snapshot,
    started: i64,
    root: (i64, u32),
) {
    let now = started..started + 86_400;
    for (path, node) in expected.iter_mut().filter(|(_, node)| now.contains(&node.mtime.0)) {
        assert_eq!(node.kind, 'd', "{path:?} has no time of its own");
        node.mtime = if path.is_empty() { root } else { (0, 0) };
        assert_eq!(actual.get(path).map(|node| node.mtime), Some(node.mtime), "{path:?}");
    }
}

#[test]
fn image_equals_what_umoci_unpacks_at_both_block_sizes() -> Result<()> {
    if !is_root("comparing with umoci") {
        return Ok(());
    }
    let started = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let layout = layout(&layers())?;
    let mut expected = unpacked(&layout)?;
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let directory = TempDir::new()?;
        let image = load(&directory, &layout, block_size)?;
        let read = snapshot::of_image(&image)?;
        take_known_times(&mut expected, &read, started, (1_600_000_000, 5));
        assert_same(&read, &expected, &format!("erofs-rs, {block_size:?}"));
        let mount = Mount::erofs(&raw_disk(&image, &directory)?)?;
        let mounted = snapshot::of_directory(&mount.path)?;
        assert_same(&mounted, &expected, &format!("kernel, {block_size:?}"));
    }
    Ok(())
}

#[test]
fn fsck_finds_nothing_in_layers_and_images() -> Result<()> {
    let layout = layout(&layers())?;
    let directory = TempDir::new()?;
    let image = load(&directory, &layout, BlockSize::B4096)?;
    let mut disks = vec![raw_disk(&image, &directory)?];
    for entry in fs::read_dir(directory.path().join("layers"))? {
        let path = entry?.path();
        disks.extend(path.extension().is_some_and(|ending| ending == "erofs").then_some(path));
    }
    assert!(disks.len() >= 5, "the image and its layers: {disks:?}");
    for disk in disks {
        let report = run("fsck.erofs", &[text(&disk)?])?;
        let is_silent = report.lines().all(|line| line.contains("No errors found"));
        assert!(is_silent, "{}: {report}", disk.display());
    }
    Ok(())
}

#[test]
fn same_image_is_the_same_bytes_every_time() -> Result<()> {
    let layout = layout(&layers())?;
    let (one, two) = (TempDir::new()?, TempDir::new()?);
    let first = load(&one, &layout, BlockSize::B512)?;
    let second = load(&two, &layout, BlockSize::B512)?;
    assert_eq!(first.digest(), second.digest());
    assert!(snapshot::disk_bytes(&first)? == snapshot::disk_bytes(&second)?);
    Ok(())
}

#[test]
fn sparse_files_keep_their_holes_as_zeros_in_every_format() -> Result<()> {
    let directory = TempDir::new()?;
    let sparse = directory.path().join("sparse");
    let holed = fs::File::create(&sparse)?;
    {
        use std::os::unix::fs::FileExt;
        for piece in 0..40 {
            holed.write_all_at(&[7; 5000], piece * 1_000_000)?;
        }
        holed.set_len(50_000_001)?;
    }
    let expected = microsandbox_image::Digest::of(&fs::read(&sparse)?);
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar = directory.path().join("layer.tar");
        let place = text(directory.path())?;
        let mut arguments = vec!["-S", "-c", "-f", text(&tar)?, "-C", place];
        arguments.splice(0..0, format.iter().copied());
        arguments.push("sparse");
        run("tar", &arguments)?;
        let bytes = fs::read(&tar)?;
        assert!(bytes.len() < 1 << 20, "tar stored the holes");
        let store = TempDir::new()?;
        let image = load(&store, &layout(&[bytes])?, BlockSize::B512)?;
        let node = snapshot::of_image(&image)?.remove(&b"sparse"[..]);
        let found = node.map(|node| (node.size, node.content));
        assert_eq!(found, Some((50_000_001, Some(expected))), "{format:?}");
    }
    Ok(())
}
