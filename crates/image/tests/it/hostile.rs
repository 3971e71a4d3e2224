//! Hostile and broken input: a typed error that names the place, and a store that is what it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use anyhow::Result;
use microsandbox_image::{
    ArchiveSource, Digest, EntryFault, Error, Image, ImageStore, LayerError, Limits, Silent,
};
use tempfile::TempDir;

use crate::tarball::{Item, directory, entry, file, hard_link, header, seal, symlink, tarball};
use crate::tools::{chain, layout, text};

/// A docker-archive with one image of these layers, as `docker save` would write it.
pub(crate) fn docker_archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    archive_promising(layers, &diff_ids)
}

pub(crate) fn archive_promising(layers: &[Vec<u8>], diff_ids: &[String]) -> Vec<u8> {
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":{diff_ids:?}}}}}"#
    );
    let names: Vec<String> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["a:b"],"Layers":{names:?}}}]"#);
    let mut items: Vec<Item> =
        names.iter().zip(layers).map(|(name, layer)| file(name, layer)).collect();
    items.extend([file("config.json", config), file("manifest.json", manifest)]);
    tarball(&items)
}

/// The one image of an archive that is good, in a store of its own.
pub(crate) fn load_stream(archive: Vec<u8>) -> Result<(TempDir, Image)> {
    let directory = TempDir::new()?;
    let source = ArchiveSource::Stream(Box::new(Cursor::new(archive)));
    let image = ImageStore::open(directory.path()).load(source, None, &Silent)?.remove(0);
    Ok((directory, image))
}

fn load(store: &ImageStore, archive: Vec<u8>) -> Result<(), Error> {
    store.load(ArchiveSource::Stream(Box::new(Cursor::new(archive))), None, &Silent).map(drop)
}

/// Every file of a store with its content; the lock, which is empty, is no part of what is stored.
pub(crate) fn files(root: &Path) -> Result<BTreeMap<String, Digest>> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path != root.join("lock") {
                found.insert(
                    text(path.strip_prefix(root)?)?.to_owned(),
                    Digest::of(&fs::read(&path)?),
                );
            }
        }
    }
    Ok(found)
}

/// Loads what must fail; the message must say `expected` and the store must not change.
fn check(name: &str, archive: Vec<u8>, expected: &str) -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    load(&store, docker_archive(&[tarball(&[file("good", "x")])]))?;
    let before = files(directory.path())?;
    match load(&store, archive) {
        Ok(()) => anyhow::bail!("{name} was accepted"),
        Err(error) => {
            let text = chain(&error);
            anyhow::ensure!(text.contains(expected), "{name}: {text:?} does not say {expected:?}");
        }
    }
    anyhow::ensure!(files(directory.path())? == before, "{name} changed the store");
    Ok(())
}

#[test]
fn entries_that_cannot_be_part_of_a_file_system_are_refused() -> Result<()> {
    let long = "n".repeat(256);
    let deep = vec!["d"; 2000].join("/");
    let far = "t".repeat(5000);
    for (name, items, expected) in [
        ("a name that leaves", vec![file("../escape", "x")], r#"entry "../escape": `..`"#),
        ("a name that leaves and returns", vec![file("a/../b", "x")], "`..`"),
        ("a whiteout of the parent", vec![file(".wh...", "")], "too long or has a NUL"),
        ("a whiteout of nothing", vec![file("d/.wh.", "")], r#""d/.wh.""#),
        ("a link that leaves", vec![hard_link("l", "../../etc/passwd")], r#"entry "l": `..`"#),
        ("a link to a directory", vec![directory("d/"), hard_link("l", "d")], "to a directory"),
        ("a link to nothing", vec![hard_link("l", "nowhere")], r#""nowhere" is the target"#),
        ("a link to the root", vec![hard_link("l", "/")], "no usable target"),
        ("an empty target", vec![symlink("s", "")], "no usable target"),
        ("an endless target", vec![symlink("s", &far)], "no usable target"),
        ("a file as a directory", vec![file("f", ""), file("f/x", "")], r#"entry "f/x""#),
        ("links in a circle", vec![symlink("s", "s"), file("s/x", "")], "symbolic links"),
        (
            "links to one another",
            vec![symlink("a", "b"), symlink("b", "a"), file("a/x", "")],
            "symbolic",
        ),
        ("a name of 256 bytes", vec![file(&long, "")], "too long"),
        ("two thousand directories", vec![directory(&deep)], "too deep"),
        ("a file for a root", vec![file("./", ""), file(".", "x")], "root must be a directory"),
        ("a huge attribute", vec![file("f", "").xattr("user.a", &[1; 70_000])], "attributes"),
        ("an absurd device", vec![entry(b'3', "d").device(0o777_7777, 0)], "device"),
        ("an unknown type", vec![entry(b'Z', "z")], "entry type is unknown"),
        ("a wrong number", vec![file("f", "").record("uid", b"-5")], "PAX number"),
        ("a wrong time", vec![file("f", "").record("mtime", b"now")], "PAX time"),
        (
            "a sparse map too far",
            vec![file("f", "x").record("GNU.sparse.size", b"2").record("GNU.sparse.map", b"9,1")],
            "sparse map",
        ),
        (
            "an absurd sparse size",
            vec![
                file("f", "x")
                    .record("GNU.sparse.size", b"9223372036854775807")
                    .record("GNU.sparse.map", b"0,1"),
            ],
            "more than",
        ),
    ] {
        check(name, docker_archive(&[tarball(&items)]), expected)?;
    }
    Ok(())
}

#[test]
fn headers_that_are_no_headers_are_refused() -> Result<()> {
    let damage = |at: usize, bytes: &[u8], sum: bool| {
        let mut block = header(b'0', b"name", &file("name", ""));
        block[at..at + bytes.len()].copy_from_slice(bytes);
        if sum {
            seal(&mut block);
        }
        [&block[..], &[0; 1024]].concat()
    };
    let mut odd_record = tarball(&[file("f", "").record("key", b"value")]);
    odd_record[512] = b'x';
    let huge = [&[0x80, 0, 0, 0][..], &[0x7f; 8]].concat();
    for (name, layer, expected) in [
        ("a wrong checksum", damage(0, b"X", false), "bad tar header at byte 0: the checksum"),
        ("a size of letters", damage(124, b"zzz", true), "neither octal"),
        ("an owner of letters", damage(108, b"9", true), "neither octal"),
        ("a negative size", damage(124, &[0xff; 12], true), "negative"),
        ("a size beyond everything", damage(124, &huge, true), "cut off"),
        ("no tar at all", b"<html>not found</html>".repeat(100), "no tar header"),
        ("a record without a length", odd_record, "PAX record"),
        ("bzip2", b"BZh91AY&SY".repeat(200), "bzip2"),
        ("a gzip stream of rubbish", [&b"\x1f\x8b\x08\0"[..], &[7; 2000]].concat(), "decompress"),
    ] {
        check(name, docker_archive(&[layer]), expected)?;
    }
    Ok(())
}

#[test]
fn a_layer_cut_off_anywhere_is_refused() -> Result<()> {
    let whole =
        tarball(&[file("first", [1; 700]).xattr("user.a", b"b"), file("second", [2; 1500])]);
    let end = whole.len() - 1024;
    // Archives without an end marker exist: one that stops between entries is taken for whole.
    let boundary = end - 512 - 1536;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    load(&store, docker_archive(&[tarball(&[file("good", "x")])]))?;
    let before = files(directory.path())?;
    for cut in (1..end).filter(|cut| *cut != boundary) {
        match load(&store, docker_archive(&[whole[..cut].to_vec()])) {
            Err(Error::Layer { image, source, .. }) => {
                let is_told =
                    matches!(*source, LayerError::Truncated { .. } | LayerError::Header { .. });
                anyhow::ensure!(image == "a:b" && is_told, "cut at {cut}: {source:?}");
            }
            other => anyhow::bail!("cut at {cut}: {other:?}"),
        }
    }
    anyhow::ensure!(files(directory.path())? == before, "the store changed");
    Ok(())
}

#[test]
fn a_bad_entry_is_named_with_its_image_and_layer() -> Result<()> {
    let bad = tarball(&[file("fine", "x"), file("a/../b", "x")]);
    let digest = Digest::of(&bad);
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    match load(&store, docker_archive(&[tarball(&[]), bad])) {
        Err(Error::Layer { image, layer, source }) => {
            assert_eq!((image.as_str(), layer), ("a:b", digest));
            let expected = EntryFault::ParentReference;
            assert!(
                matches!(&*source, LayerError::Entry { entry, fault }
                    if entry == "a/../b" && *fault == expected),
                "{source:?}"
            );
        }
        other => anyhow::bail!("{other:?}"),
    }
    assert_eq!(files(directory.path())?, BTreeMap::new());
    Ok(())
}

#[test]
fn links_lead_to_no_place_but_the_images_own() -> Result<()> {
    let outside = TempDir::new()?;
    let target = text(outside.path())?;
    let (_store, image) = load_stream(docker_archive(&[tarball(&[
        symlink("out", target),
        symlink("up", format!("../../../../..{target}")),
        symlink("through", "up"),
        file("out/one", "x"),
        file("up/two", "x"),
        file("through/three", "x"),
    ])]))?;
    assert_eq!(fs::read_dir(outside.path())?.count(), 0, "a file left the image");
    let tree = crate::snapshot::of_image(&image)?;
    for name in ["one", "two", "three"] {
        let path = format!("{}/{name}", target.trim_start_matches('/'));
        assert!(tree.contains_key(path.as_bytes()), "{path} is missing");
    }
    Ok(())
}

#[test]
fn a_layer_beyond_its_limits_is_refused() -> Result<()> {
    // Zeros pack without end: 1.2 GB travel as a few kilobytes.
    let bomb = || -> Result<Vec<u8>> {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1)?;
        let mut block = header(b'0', b"zeros", &file("zeros", ""));
        block[124..135].copy_from_slice(format!("{:011o}", 1200 << 20).as_bytes());
        seal(&mut block);
        encoder.write_all(&block)?;
        for _ in 0..1200 {
            encoder.write_all(&vec![0; 1 << 20])?;
        }
        Ok(encoder.finish()?)
    };
    let two_mib = tarball(&[file("f", vec![1; 2 << 20])]);
    let holes = tarball(&[file("f", "x")
        .record("GNU.sparse.size", b"2000000")
        .record("GNU.sparse.map", b"0,1")]);
    let limits = Limits::default;
    for (name, layer, limits, expected) in [
        ("a bomb", bomb()?, limits(), "it unpacks to more than 256 times its size"),
        ("too many bytes", two_mib, limits().with_layer_bytes(1 << 20), "more than 1048576 bytes"),
        ("too many holes", holes, limits().with_layer_bytes(1 << 20), "more than 1048576 bytes"),
        (
            "too many entries",
            tarball(&[file("a", ""), file("b", ""), file("c", "")]),
            limits().with_layer_entries(2),
            "more than 2 entries",
        ),
    ] {
        let directory = TempDir::new()?;
        let store = ImageStore::open(directory.path()).with_limits(limits);
        let promised = [Digest::of(b"never reached").to_string()];
        let Err(error) = load(&store, archive_promising(&[layer], &promised)) else {
            anyhow::bail!("{name} was accepted");
        };
        assert!(chain(&error).contains(expected), "{name}: {}", chain(&error));
        assert_eq!(files(directory.path())?, BTreeMap::new(), "{name}");
    }
    Ok(())
}

#[test]
fn a_compressed_layer_cut_off_is_refused() -> Result<()> {
    // Hexadecimal digits of digests: nothing compresses them to less than half.
    let noise: String = (0..4000_u32).map(|n| Digest::of(&n.to_le_bytes()).hex()).collect();
    let tar = tarball(&[file("noise", noise)]);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&tar)?;
    let packed = encoder.finish()?;
    let promised = [Digest::of(&tar).to_string()];
    for cut in [20, packed.len() / 2, packed.len() - 9, packed.len() - 1] {
        let archive = archive_promising(&[packed[..cut].to_vec()], &promised);
        check(&format!("cut at {cut}"), archive, "decompress the layer")?;
    }
    Ok(())
}

#[test]
fn a_layer_other_than_promised_is_refused() -> Result<()> {
    let layer = tarball(&[file("f", vec![5; 100_000])]);
    let other = Digest::of(b"another").to_string();
    check(
        "a wrong diff id",
        archive_promising(std::slice::from_ref(&layer), &[other]),
        "instead of sha256:",
    )?;
    let error = {
        let directory = TempDir::new()?;
        let store = ImageStore::open(directory.path());
        load(&store, archive_promising(&[layer], &[Digest::of(b"another").to_string()]))
    };
    let Err(Error::Layer { image, source, .. }) = error else { anyhow::bail!("{error:?}") };
    assert_eq!(image, "a:b");
    assert!(matches!(*source, LayerError::DiffId { .. }), "{source:?}");
    Ok(())
}

#[test]
fn archives_without_what_they_name_are_refused() -> Result<()> {
    let bare = |manifest: &str| tarball(&[file("manifest.json", manifest)]);
    for (name, archive, expected) in [
        ("nothing", Vec::new(), "holds no image"),
        ("other files", tarball(&[file("readme", "x")]), "holds no image"),
        ("rubbish", vec![7; 2000], "read archive -"),
        ("no JSON", bare("<html>"), "not an image manifest"),
        ("no images", bare("[]"), "holds no image"),
        (
            "no configuration",
            bare(r#"[{"Config":"c","RepoTags":[],"Layers":[]}]"#),
            r#"names "c" but does not contain it"#,
        ),
        (
            "a path out of the archive",
            bare(r#"[{"Config":"../../etc/passwd","RepoTags":[],"Layers":[]}]"#),
            "does not contain it",
        ),
        (
            "fewer diff ids",
            archive_promising(&[tarball(&[])], &[]),
            "lists 1 layers but 0 diff ids",
        ),
        (
            "a diff id that is a path",
            archive_promising(&[tarball(&[])], &["sha256:../../x".into()]),
            "not an image configuration",
        ),
    ] {
        check(name, archive, expected)?;
    }
    Ok(())
}

#[test]
fn a_layout_with_one_wrong_byte_is_refused() -> Result<()> {
    let made = layout(&[tarball(&[file("f", vec![9; 5000])])])?;
    let root = made.path().join("layout");
    let mut refused = 0;
    for entry in fs::read_dir(root.join("blobs/sha256"))? {
        let path = entry?.path();
        let good = fs::read(&path)?;
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x20;
        fs::write(&path, &bad)?;
        let directory = TempDir::new()?;
        let store = ImageStore::open(directory.path());
        let loaded = store.load(ArchiveSource::Path(root.clone()), None, &Silent);
        if loaded.is_err() {
            refused += 1;
            assert_eq!(files(directory.path())?, BTreeMap::new(), "{}", path.display());
        }
        fs::write(&path, &good)?;
    }
    // Manifest, configuration and layer; umoci leaves blobs behind that nothing names, and nothing reads.
    assert_eq!(refused, 3);
    Ok(())
}
