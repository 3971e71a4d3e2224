//! Images whose layers real tools have packed: GNU tar in its formats, Python's `tarfile`, gzip, zstd.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use microsandbox_image::{BlockSize, Digest};
use tempfile::TempDir;

use crate::fidelity::{ACL, CAPABILITY, load, raw_disk, take_known_times, unpacked};
use crate::hostile::{archive_promising, load_stream};
use crate::snapshot::{self, assert_same};
use crate::tarball::{Item, directory, file, hard_link, symlink as link, tarball};
use crate::tools::{Mount, is_root, layout, run, text};

/// Everything that a directory of this host can hold and a tar archive can carry.
fn furnish(root: &Path) -> Result<()> {
    let place = |name: &[u8]| root.join(OsStr::from_bytes(name));
    let put = |name: &[u8], bytes: &[u8], mode: u32, when: SystemTime| -> Result<()> {
        fs::write(place(name), bytes)?;
        fs::set_permissions(place(name), fs::Permissions::from_mode(mode))?;
        Ok(File::options().append(true).open(place(name))?.set_modified(when)?)
    };
    let then = UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    let deep = [&b"d".repeat(90)[..], &b"e".repeat(90), &b"f".repeat(90)].join(&b'/');
    fs::create_dir_all(place(&deep))?;
    put(&[&deep, &b"/leaf"[..]].concat(), b"far down", 0o644, then)?;
    put(&b"n".repeat(255), b"255 bytes of name", 0o640, then)?;
    put(b"caf\xe9", b"not UTF-8", 0o600, then)?;
    put(b"program", &[7; 3000], 0o6755, then)?;
    put(b"empty", b"", 0o444, then)?;
    put(b"before-the-epoch", b"x", 0o644, UNIX_EPOCH - Duration::new(86_400, 500_000_000))?;
    put(b"far-future", b"x", 0o644, UNIX_EPOCH + Duration::from_secs(9_000_000_000))?;
    put(b"owned", b"x", 0o644, then)?;
    chown(place(b"owned"), Some(70_000), Some(4_000_000_000))?;
    fs::hard_link(place(b"owned"), place(b"owned-too"))?;
    symlink("empty", place(b"link"))?;
    symlink("t".repeat(900), place(b"long-link"))?;
    for (name, value) in [
        ("user.note", &b"a=\n\0b"[..]),
        ("security.capability", &CAPABILITY),
        ("system.posix_acl_access", &ACL),
    ] {
        xattr::set(place(b"program"), name, value)?;
    }
    let holed = File::create(place(b"holed"))?;
    for piece in 0..30 {
        holed.write_all_at(&[7; 5000], piece * 1_000_000)?;
    }
    holed.set_len(50_000_001)?;
    for (name, kind) in
        [("null", &["c", "1", "3"][..]), ("disk", &["b", "259", "300"]), ("pipe", &["p"])]
    {
        let path = root.join(name);
        run("mknod", &[&[text(&path)?], kind].concat())?;
    }
    fs::create_dir(place(b"sticky"))?;
    fs::set_permissions(place(b"sticky"), fs::Permissions::from_mode(0o1777))?;
    // What has no time of its own so far; the present is what umoci gives to names without an entry.
    let fresh = ["-newermt", "2020-10-01", "!", "-name", "far-future", "-exec", "touch", "-h"];
    let words = [&[text(root)?], &fresh[..], &["-d", "@1600000000.5", "{}", "+"]].concat();
    run("find", &words).map(drop)
}

#[test]
fn what_tools_pack_is_what_umoci_unpacks() -> Result<()> {
    if !is_root("packing devices and comparing with umoci") {
        return Ok(());
    }
    let work = TempDir::new()?;
    let python = "import sys, tarfile\n\
        with tarfile.open(sys.argv[1], 'w', format=getattr(tarfile, sys.argv[2])) as tar:\n    \
        tar.add(sys.argv[3], sys.argv[4])\n";
    let mut layers = Vec::new();
    for (name, tool) in [
        // Without holes: umoci does not know GNU's own sparse entries, which another test has.
        ("gnu", &["tar", "--format=gnu"][..]),
        ("oldgnu", &["tar", "--format=oldgnu"]),
        ("pax", &["tar", "--format=pax", "-S", "--xattrs", "--xattrs-include=*", "--acls"]),
        ("pax-0.0", &["tar", "--format=pax", "-S", "--sparse-version=0.0"]),
        ("pax-0.1", &["tar", "--format=pax", "-S", "--sparse-version=0.1"]),
        ("python-gnu", &["python3", "GNU_FORMAT"]),
        ("python-pax", &["python3", "PAX_FORMAT"]),
    ] {
        let root = work.path().join(name);
        fs::create_dir(&root)?;
        furnish(&root)?;
        let tar = work.path().join("layer.tar");
        match tool {
            ["python3", format] => {
                // Python refuses what its formats cannot say instead of leaving it out.
                run("python3", &["-c", python, text(&tar)?, format, text(&root)?, name])?
            }
            _ => {
                let rest = ["-c", "-f", text(&tar)?, "-C", text(work.path())?, name];
                run(tool[0], &[&tool[1..], &rest].concat())?
            }
        };
        layers.push(fs::read(&tar)?);
        fs::remove_dir_all(&root)?;
    }
    compare_with_umoci(&layers)
}

/// Loads an image of these layers at both block sizes; erofs-rs, the kernel and fsck.erofs judge it.
fn compare_with_umoci(layers: &[Vec<u8>]) -> Result<()> {
    let started = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
    let layout = layout(layers)?;
    let mut expected = unpacked(&layout)?;
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let directory = TempDir::new()?;
        let image = load(&directory, &layout, block_size)?;
        let read = snapshot::of_image(&image)?;
        take_known_times(&mut expected, &read, started, (0, 0));
        assert_same(&read, &expected, &format!("erofs-rs, {block_size:?}"));
        let raw = raw_disk(&image, &directory)?;
        if block_size == BlockSize::B4096 {
            run("fsck.erofs", &[text(&raw)?])?;
        }
        let mount = Mount::erofs(&raw)?;
        assert_same(&snapshot::of_directory(&mount.path)?, &expected, "kernel");
    }
    Ok(())
}

#[test]
fn an_image_of_127_layers_is_what_umoci_unpacks() -> Result<()> {
    if !is_root("comparing with umoci") {
        return Ok(());
    }
    let layers: Vec<Vec<u8>> = (0..127_usize)
        .map(|index| {
            let mut items = vec![
                directory("d/"),
                file(format!("d/of-{index}"), index.to_string()),
                file("d/last", index.to_string())
                    .mode(0o600 + u32::try_from(index % 8).unwrap_or(0)),
            ];
            if index > 2 {
                items.push(file(format!("d/.wh.of-{}", index - 2), ""));
            }
            if index % 10 == 5 {
                items.push(hard_link(format!("d/link-{index}"), format!("d/of-{}", index - 1)));
            }
            tarball(&items)
        })
        .collect();
    compare_with_umoci(&layers)
}

#[test]
fn large_directories_and_files_are_whole() -> Result<()> {
    if !is_root("mounting") {
        return Ok(());
    }
    let work = TempDir::new()?;
    let root = work.path().join("root");
    let many = root.join("many");
    fs::create_dir_all(&many)?;
    for index in 0..100_000 {
        File::create(many.join(format!("entry number {index}")))?;
    }
    let large = File::create(root.join("large"))?;
    let four_gib = 4_u64 << 30;
    for (at, mark) in [(0, b"start"), (four_gib - 2, b"at 4G"), (four_gib + (64 << 20), b"close")] {
        large.write_all_at(mark, at)?;
    }
    let tar = work.path().join("layer.tar");
    run("tar", &["-S", "--format=pax", "-c", "-f", text(&tar)?, "-C", text(&root)?, "."])?;
    let image = load(&work, &layout(&[fs::read(&tar)?])?, BlockSize::B512)?;

    assert_eq!(image.size_bytes() / four_gib, 1, "the holes have addresses");
    let stored: u64 = image.extents().iter().map(|part| blocks(&part.path)).sum::<Result<_>>()?;
    assert!(stored < 64 << 20, "{stored} bytes are not sparse");
    let raw = raw_disk(&image, &work)?;
    let mount = Mount::erofs(&raw)?;
    let (from, to) = (File::open(root.join("large"))?, File::open(mount.path.join("large"))?);
    assert_eq!(to.metadata()?.len(), from.metadata()?.len());
    for at in (0..=four_gib).step_by(256 << 20).chain([four_gib - 4096, four_gib + (63 << 20)]) {
        let windows = [&from, &to].map(|file| -> Result<Vec<u8>> {
            let mut window = vec![0; 1 << 20];
            file.read_exact_at(&mut window, at)?;
            Ok(window)
        });
        let [from, to] = windows;
        assert!(from? == to?, "at {at}");
    }
    let mut end = [0; 5];
    to.read_exact_at(&mut end, four_gib + (64 << 20))?;
    assert_eq!(&end, b"close");
    let names = |directory: &Path| -> Result<Vec<_>> {
        let mut names = fs::read_dir(directory)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    };
    assert!(names(&mount.path.join("many"))? == names(&many)?);
    for index in [0, 1, 49_999, 99_999] {
        let name = format!("many/entry number {index}");
        assert!(mount.path.join(&name).is_file(), "{name} is not found by its name");
    }
    assert!(!mount.path.join("many/entry number 100000").exists());
    Ok(())
}

fn blocks(path: &Path) -> Result<u64> {
    Ok(path.metadata()?.blocks() * 512)
}

#[test]
fn a_layer_is_the_same_however_it_is_packed() -> Result<()> {
    let noise: String = (0..9000_u32).map(|n| Digest::of(&n.to_le_bytes()).hex()).collect();
    let tar = tarball(&[file("noise", noise), directory("d/"), file("d/zeros", vec![0; 700_000])]);
    let promised = [Digest::of(&tar).to_string()];
    let gzip = |bytes: &[u8]| -> Result<Vec<u8>> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes)?;
        Ok(encoder.finish()?)
    };
    let zstd = |bytes: &[u8], with_size: bool| -> Result<Vec<u8>> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
        encoder.include_contentsize(with_size)?;
        encoder.include_checksum(true)?;
        if with_size {
            encoder.set_pledged_src_size(Some(bytes.len() as u64))?;
        }
        encoder.write_all(bytes)?;
        Ok(encoder.finish()?)
    };
    let (one, two) = tar.split_at(tar.len() / 3);
    let skippable =
        [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(&tar, true)?].concat();
    let mut trees = Vec::new();
    for (name, packed) in [
        ("not packed", tar.clone()),
        ("gzip", gzip(&tar)?),
        ("gzip in members", [gzip(one)?, gzip(two)?, gzip(b"")?].concat()),
        ("zstd that tells its size", zstd(&tar, true)?),
        ("zstd that does not", zstd(&tar, false)?),
        ("zstd in frames", [zstd(one, true)?, zstd(two, false)?].concat()),
        ("zstd after a skippable frame", skippable),
    ] {
        let (_store, image) = load_stream(archive_promising(&[packed], &promised))?;
        trees.push((name, snapshot::of_image(&image)?));
    }
    for (name, tree) in &trees {
        assert_eq!(tree.len(), 4, "{name}");
        assert_same(tree, &trees[0].1, name);
    }
    Ok(())
}

/// The judges of this suite judge: each attribute, broken on purpose, shows.
#[test]
fn a_broken_attribute_is_noticed() -> Result<()> {
    if !is_root("comparing with umoci") {
        return Ok(());
    }
    let right = || -> Vec<Item> {
        vec![
            directory("./").time(1_600_000_000, 0),
            file("f", "content").time(1_600_000_000, 7).xattr("user.a", b"1"),
            hard_link("g", "f").time(1_600_000_000, 7).xattr("user.a", b"1"),
            link("l", "target"),
            crate::tarball::entry(b'3', "null").device(1, 3),
        ]
    };
    let expected = unpacked(&layout(&[tarball(&right())])?)?;
    type Break = fn(&mut Vec<Item>);
    let breaks: [(&str, &str, Break); 11] = [
        ("nothing", "", |_| {}),
        ("mode", "f", |items| items[1].mode = 0o640),
        ("owner", "f", |items| items[1].uid = 1),
        ("group", "f", |items| items[1].gid = 1),
        ("nanoseconds", "f", |items| items[1].mtime.1 = 8),
        ("attribute", "f", |items| items[1].xattrs[0].1 = b"2".to_vec()),
        ("content", "f", |items| items[1].data = b"contend".to_vec()),
        ("links", "g", |items| items[2] = file("g", "content").time(1_600_000_000, 7)),
        ("target", "l", |items| items[3].link = b"targeT".to_vec()),
        ("device", "null", |items| items[4].device = (1, 5)),
        ("name", "null", |items| items[4].name = b"nulL".to_vec()),
    ];
    for (what, path, broken) in breaks {
        let mut items = right();
        broken(&mut items);
        let directory = TempDir::new()?;
        let image = load(&directory, &layout(&[tarball(&items)])?, BlockSize::B512)?;
        let differences = snapshot::differences(&snapshot::of_image(&image)?, &expected);
        let found = differences.iter().any(|line| line.starts_with(&format!("{path}\n")));
        assert_eq!(found, what != "nothing", "{what}: {differences:?}");
    }
    Ok(())
}
