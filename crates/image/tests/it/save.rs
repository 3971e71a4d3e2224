//! Saving: what was taken in comes out again to the byte, and other tools read it.

use std::fs::{self, File};
use std::io::{Cursor, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use microsandbox_image::{
    ArchiveFormat, ArchiveSource, Digest, Error, Image, ImageStore, LayerCompression, Reference,
    SaveOptions, SaveTarget, Silent,
};
use tempfile::TempDir;

use crate::hostile::{docker_archive, files};
use crate::snapshot::{self, assert_same};
use crate::tarball::{directory, entry, file, hard_link, symlink, tarball};
use crate::tools::{is_root, layout, run, text};

/// Layers as odd as tools make them, and odder.
fn layers() -> Result<Vec<Vec<u8>>> {
    let long = format!("long/{}", "n".repeat(200));
    let mut odd = tarball(&[
        directory("etc/"),
        directory("long/"),
        file("etc/name", "base").xattr("user.note", b"kept").time(1_700_000_000, 5),
        file("etc/name", "again: the first one is data that nothing names"),
        file(&long, vec![7; 70_000]).owner(3_000_000, 7),
        hard_link("etc/other", "etc/name"),
        symlink("link", "etc/name"),
        entry(b'6', "fifo"),
        file("empty", ""),
        file("sparse", "xy")
            .record("GNU.sparse.size", b"100000")
            .record("GNU.sparse.numblocks", b"2")
            .record("GNU.sparse.map", b"0,1,99999,1"),
    ]);
    // What follows the end of an archive belongs to it.
    odd.resize(odd.len() + 10_240, 0);
    odd.extend_from_slice(b"not even zeros");
    let deleting = tarball(&[file("etc/.wh.other", "with data"), file(".wh.nothing", "")]);
    Ok(vec![odd, real_tar("posix")?, deleting, tarball(&[])])
}

/// What GNU tar makes of a sparse file, long names and a hard link.
fn real_tar(format: &str) -> Result<Vec<u8>> {
    let directory = TempDir::new()?;
    let root = directory.path().join("root");
    fs::create_dir(&root)?;
    let name = "g".repeat(150);
    fs::write(root.join(&name), "long")?;
    fs::hard_link(root.join(&name), root.join("twin"))?;
    let mut sparse = File::create(root.join("holes"))?;
    sparse.write_all(b"begin")?;
    sparse.set_len(3 << 20)?;
    let tar = directory.path().join("gnu.tar");
    let format = format!("--format={format}");
    run("tar", &[&format, "--sparse", "-C", text(&root)?, "-cf", text(&tar)?, "."])?;
    Ok(fs::read(tar)?)
}

fn load(store: &ImageStore, source: ArchiveSource) -> Result<Image> {
    Ok(store.load(source, Some(&"team/odd:1".parse()?), &Silent)?.remove(0))
}

fn options(format: ArchiveFormat, compression: LayerCompression) -> SaveOptions {
    SaveOptions::default().with_format(format).with_compression(compression)
}

#[test]
fn every_format_comes_back_with_the_same_diff_ids() -> Result<()> {
    let mut layers = layers()?;
    // umoci cannot unpack it, so the other judges do not see it.
    layers.push(real_tar("gnu")?);
    let made = layout(&layers)?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path().join("store"));
    let image = load(&store, ArchiveSource::Path(made.path().join("layout")))?;
    let tree = snapshot::of_image(&image)?;
    let names: [Reference; 1] = ["team/odd:1".parse()?];
    for (number, (format, compression)) in [
        (ArchiveFormat::Oci, LayerCompression::Gzip),
        (ArchiveFormat::Oci, LayerCompression::Zstd),
        (ArchiveFormat::Oci, LayerCompression::None),
        (ArchiveFormat::OciLayout, LayerCompression::Gzip),
        (ArchiveFormat::Docker, LayerCompression::Gzip),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{format:?} {compression:?}");
        let options = options(format, compression);
        let saved = directory.path().join(number.to_string());
        store.save(&names, SaveTarget::Path(saved.clone()), &options)?;
        let again = directory.path().join(format!("{number}-again"));
        store.save(&names, SaveTarget::Path(again.clone()), &options)?;
        assert_eq!(contents(&saved)?, contents(&again)?, "{what}: not the same each time");

        let other = TempDir::new()?;
        let loaded = ImageStore::open(other.path());
        let loaded = loaded.load(ArchiveSource::Path(saved.clone()), None, &Silent)?.remove(0);
        assert_eq!(loaded.references(), names, "{what}");
        assert_eq!(loaded.diff_ids(), image.diff_ids(), "{what}");
        assert_eq!(loaded.config_digest(), image.config_digest(), "{what}");
        assert_same(&snapshot::of_image(&loaded)?, &tree, &what);
    }
    Ok(())
}

#[test]
fn other_tools_read_what_is_saved() -> Result<()> {
    if !is_root("umoci as a judge") {
        return Ok(());
    }
    let made = layout(&layers()?)?;
    let directory = TempDir::new()?;
    let place = |name: &str| directory.path().join(name);
    let store = ImageStore::open(place("store"));
    let original = made.path().join("layout");
    let image = load(&store, ArchiveSource::Path(original.clone()))?;
    let expected = unpacked(&original, "latest", &place("expected"))?;
    let names: [Reference; 1] = ["team/odd:1".parse()?];
    for (name, format, compression, transport) in [
        ("oci.tar", ArchiveFormat::Oci, LayerCompression::Gzip, "oci-archive"),
        ("plain.tar", ArchiveFormat::Oci, LayerCompression::None, "oci-archive"),
        ("layout", ArchiveFormat::OciLayout, LayerCompression::Zstd, "oci"),
        ("docker.tar", ArchiveFormat::Docker, LayerCompression::Gzip, "docker-archive"),
    ] {
        let saved = place(name);
        let options = options(format, compression);
        store.save(&names, SaveTarget::Path(saved.clone()), &options)?;
        let source = format!("{transport}:{}", text(&saved)?);
        let config = run("skopeo", &["inspect", "--config", &source])?;
        let config: serde_json::Value = serde_json::from_str(&config)?;
        let diff_ids: Vec<String> = image.diff_ids().iter().map(ToString::to_string).collect();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(diff_ids), "{name}");

        let copied = place(&format!("{name}-copied"));
        let target = format!("oci:{}:latest", text(&copied)?);
        // Every layer as gzip: this umoci reads no zstd.
        run(
            "skopeo",
            &["copy", "--dest-compress", "--dest-compress-format=gzip", &source, &target],
        )?;
        let tree = unpacked(&copied, "latest", &place(&format!("{name}-unpacked")))?;
        assert_same(&tree, &expected, name);
    }
    Ok(())
}

/// What `umoci unpack` makes of an image.
fn unpacked(layout: &Path, tag: &str, bundle: &Path) -> Result<snapshot::Snapshot> {
    let image = format!("{}:{tag}", text(layout)?);
    run("umoci", &["unpack", "--image", &image, text(bundle)?])?;
    snapshot::of_directory(&bundle.join("rootfs"))
}

#[test]
fn images_saved_together_share_layers_and_keep_every_name() -> Result<()> {
    let shared = tarball(&[file("shared", vec![1; 50_000])]);
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let names: Vec<Reference> = ["one:1", "two:1", "two:again"]
        .iter()
        .map(|name| name.parse())
        .collect::<Result<_, _>>()?;
    for (name, own) in [("one:1", "1"), ("two:1", "2")] {
        let archive = docker_archive(&[shared.clone(), tarball(&[file("own", own)])]);
        let source = ArchiveSource::Stream(Box::new(Cursor::new(archive)));
        store.load(source, Some(&name.parse()?), &Silent)?;
    }
    store.tag(&names[1], &names[2])?;
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let sink = Sink::default();
        let target = SaveTarget::Stream(Box::new(sink.clone()));
        store.save(&names, target, &options(format, LayerCompression::None))?;
        let bytes = sink.bytes.lock().expect("no writer panics").clone();
        let needle = [1; 50_000];
        let copies = bytes.windows(needle.len()).filter(|window| *window == needle).count();
        assert_eq!(copies, 1, "{format:?}: the shared layer is there once");

        let other = TempDir::new()?;
        let other = ImageStore::open(other.path());
        other.load(ArchiveSource::Stream(Box::new(Cursor::new(bytes))), None, &Silent)?;
        for name in &names {
            let (ours, theirs) = (store.get(name)?, other.get(name)?);
            let diff_ids = |image: Option<Image>| image.map(|image| image.diff_ids().to_vec());
            assert_eq!(diff_ids(theirs), diff_ids(ours), "{format:?} {name}");
        }
    }
    Ok(())
}

#[derive(Clone, Default)]
struct Sink {
    bytes: Arc<Mutex<Vec<u8>>>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes.lock().expect("no writer panics").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn what_cannot_be_saved_leaves_nothing() -> Result<()> {
    let made = layout(&layers()?)?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path().join("store"));
    let source = || ArchiveSource::Path(made.path().join("layout"));
    let image = load(&store, source())?;
    let whole = files(store.root())?;
    let out = directory.path().join("out");
    fs::create_dir(&out)?;
    let save = |name: &str, format| {
        let names = ["team/odd:1".parse()?];
        let target = SaveTarget::Path(out.join(name));
        store.save(&names, target, &options(format, LayerCompression::Gzip))
    };

    let missing =
        store.save(&["no:1".parse()?], SaveTarget::Path(out.join("a")), &SaveOptions::default());
    assert!(matches!(missing, Err(Error::NotCached { .. })), "{missing:?}");

    let record = find(store.root(), ".record")?;
    let kept = fs::read(&record)?;
    fs::remove_file(&record)?;
    let Err(error @ Error::LayerIncomplete { .. }) = save("a", ArchiveFormat::Oci) else {
        anyhow::bail!("saved without a record")
    };
    assert!(error.hint().is_some_and(|hint| hint.contains("pull or load it again")));
    // Doing what the hint says mends it.
    store.remove(&"team/odd:1".parse()?, &[])?;
    load(&store, source())?;
    assert_eq!(files(store.root())?, whole);

    for (name, damage) in
        [("cut off", &kept[..kept.len() / 2]), ("no record", b"something else"), ("empty", b"")]
    {
        fs::write(&record, damage)?;
        for format in [ArchiveFormat::Oci, ArchiveFormat::OciLayout, ArchiveFormat::Docker] {
            assert!(save("a", format).is_err(), "{name}: {format:?}");
        }
    }
    fs::write(&record, &kept)?;

    let layer = image.extents()[1].path.clone();
    let sound = fs::read(&layer)?;
    let mut damaged = sound.clone();
    let at = damaged.windows(4).position(|bytes| bytes == b"base").context("the file's data")?;
    damaged[at] = b'B';
    fs::write(&layer, damaged)?;
    for format in [ArchiveFormat::Oci, ArchiveFormat::Docker] {
        let saved = save("a", format);
        assert!(matches!(saved, Err(Error::StoreDamaged { .. })), "{saved:?}");
    }
    fs::write(&layer, sound)?;
    assert_eq!(fs::read_dir(&out)?.count(), 0, "something is left");

    fs::create_dir(out.join("full"))?;
    fs::write(out.join("full/file"), "mine")?;
    let refused = save("full", ArchiveFormat::OciLayout);
    assert!(matches!(refused, Err(Error::ArchiveExists { .. })), "{refused:?}");
    assert_eq!(files(&out)?.len(), 1);
    save("full/file", ArchiveFormat::Oci)?;
    assert_eq!(files(&out)?.len(), 1, "a file is replaced");
    Ok(())
}

/// The first file in order whose name ends like that.
fn find(root: &Path, ending: &str) -> Result<std::path::PathBuf> {
    let names = files(root)?;
    let name = names.keys().find(|name| name.ends_with(ending)).context("there is one")?;
    Ok(root.join(name))
}

/// A file's bytes, or those of all files beneath a directory.
fn contents(path: &Path) -> Result<Vec<(String, Digest)>> {
    if path.is_dir() {
        return Ok(files(path)?.into_iter().collect());
    }
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(vec![(String::new(), Digest::of(&bytes))])
}
