//! The store: sharing, removal, and what crashes and other processes leave.

use std::fs::{self, File};
use std::io::Cursor;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use microsandbox_image::{
    ArchiveSource, Error, Image, ImageStore, Reference, Silent, StorePart, StoreUsage,
};
use tempfile::TempDir;

use crate::hostile::{docker_archive, files};
use crate::snapshot;
use crate::tarball::{file, tarball};
use crate::tools::{run, text};

fn shared_layer() -> Vec<u8> {
    tarball(&[file("shared", vec![1; 200_000])])
}

fn load(store: &ImageStore, name: &str, own: &str) -> Result<Image> {
    let archive = docker_archive(&[shared_layer(), tarball(&[file("own", own)])]);
    let source = ArchiveSource::Stream(Box::new(Cursor::new(archive)));
    Ok(store.load(source, Some(&name.parse()?), &Silent)?.remove(0))
}

#[test]
fn reading_an_absent_store_creates_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    let root = directory.path().join("images");
    let store = ImageStore::open(&root);
    assert_eq!(store.get(&"a".parse()?)?, None);
    assert_eq!(store.list()?, []);
    assert_eq!(store.collect(&[])?, Default::default());
    let removed = store.remove(&"a".parse()?, &[]);
    assert!(matches!(removed, Err(Error::NotCached { .. })), "{removed:?}");
    assert!(!root.exists());
    Ok(())
}

#[test]
fn removal_takes_what_nothing_else_needs() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let one = load(&store, "one:1", "1")?;
    let two = load(&store, "two:1", "2")?;
    load(&store, "again:1", "2")?;
    let names: Vec<String> =
        store.list()?.iter().flat_map(Image::references).map(Reference::familiar).collect();
    assert_eq!(names, ["again:1", "two:1", "one:1"]);

    let collected = store.remove(&"two:1".parse()?, &[])?;
    assert_eq!((collected.images, collected.layers), (0, 0), "another name still stands for it");
    let collected = store.remove(&"again:1".parse()?, &[two.digest()])?;
    assert_eq!((collected.images, collected.layers), (0, 0), "it is pinned");
    let collected = store.collect(&[])?;
    assert_eq!(
        (collected.images, collected.layers),
        (1, 1),
        "its own layer goes, the shared one stays"
    );
    assert!(collected.freed_bytes > 0);
    assert_eq!(store.get(&"one:1".parse()?)?, Some(one.clone()));
    assert!(one.extents().iter().all(|extent| extent.path.is_file()));

    store.remove(&"one:1".parse()?, &[])?;
    assert!(files(directory.path())?.is_empty());
    Ok(())
}

/// What `du` says the store takes.
fn du(root: &Path) -> Result<u64> {
    let said = run("du", &["--summarize", "--block-size=1", text(root)?])?;
    Ok(said.split_whitespace().next().unwrap_or_default().parse()?)
}

#[test]
fn usage_accounts_for_every_byte_and_a_collection_frees_what_it_says() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    assert_eq!(ImageStore::open(directory.path().join("none")).usage(&[])?.total_bytes, 0);
    let one = load(&store, "one:1", "1")?;
    let two = load(&store, "two:1", "2")?;
    let with_two = store.usage(&[])?;
    store.tag(&"two:1".parse()?, &"two:again".parse()?)?;
    // Leftovers of a crash, and a file that is none of ours.
    fs::write(directory.path().join("layers/.new-1-2-3.partial"), vec![1; 9000])?;
    fs::create_dir(directory.path().join("manifests/.new-1-2-3"))?;
    fs::write(directory.path().join("manifests/.new-1-2-3/meta.erofs"), vec![1; 5000])?;
    fs::write(directory.path().join("notes.txt"), "x")?;
    run("sync", &[])?;

    let usage = store.usage(&[])?;
    assert_eq!(usage.total_bytes, du(directory.path())?, "{usage:?}");
    assert_eq!(usage.total_bytes, usage.parts.iter().map(|part| part.bytes).sum::<u64>());
    let part = |usage: &StoreUsage, wanted| {
        usage.parts.iter().find(|part| part.part == wanted).copied().expect("every part is listed")
    };
    assert_eq!(part(&usage, StorePart::Layers).count, 3);
    assert_eq!(part(&usage, StorePart::Records).count, 3);
    assert_eq!(part(&usage, StorePart::Other).count, 1);
    // A second name costs its file and nothing else.
    for wanted in [StorePart::Layers, StorePart::Metadata, StorePart::Documents] {
        assert_eq!(part(&usage, wanted), part(&with_two, wanted));
    }
    let [first, second] = &usage.images[..] else { anyhow::bail!("{usage:?}") };
    assert_eq!((first.digest, second.digest), (one.digest(), two.digest()));
    assert_eq!(second.references, ["two:1".parse()?, "two:again".parse()?]);
    assert!(first.shared_bytes >= 200_000 && first.shared_bytes == second.shared_bytes);
    let unfinished = part(&usage, StorePart::Unfinished).bytes;
    assert!(unfinished >= 14_000, "{usage:?}");
    assert!(usage.reclaimable_bytes >= unfinished, "{usage:?}");

    let freed = store.collect(&[])?.freed_bytes;
    assert_eq!(freed, usage.reclaimable_bytes);
    assert_eq!(store.usage(&[])?.reclaimable_bytes, 0);
    let without_one = store.remove(&"one:1".parse()?, &[])?.freed_bytes;
    assert_eq!(without_one, first.own_bytes);
    assert_eq!(store.usage(&[])?.total_bytes, du(directory.path())?);
    Ok(())
}

#[test]
fn shrinking_takes_the_least_recently_used_and_nothing_that_is_needed() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let names = ["old:1", "pinned:1", "held:1", "new:1"];
    let images: Vec<Image> =
        names.iter().map(|name| load(&store, name, name)).collect::<Result<_>>()?;
    // The times of loading, made certain.
    for (age, image) in images.iter().rev().enumerate() {
        let time = SystemTime::now() - Duration::from_secs(60 * (1 + age as u64));
        File::open(image.disk())?.set_modified(time)?;
    }
    let held = store.hold(&images[2])?.expect("it is there");
    File::open(images[2].disk())?.set_modified(SystemTime::UNIX_EPOCH)?;
    let pinned = [images[1].digest()];
    let total = store.usage(&pinned)?.total_bytes;

    let nothing = store.shrink(total, &pinned)?;
    assert_eq!((nothing.images, nothing.freed_bytes), (0, 0));
    let collected = store.shrink(total - 1, &pinned)?;
    assert_eq!((collected.images, collected.layers), (1, 1), "its own layer, not the shared one");
    assert_eq!(store.get(&"old:1".parse()?)?, None);
    assert!(store.get(&"new:1".parse()?)?.is_some());

    assert_eq!(store.shrink(0, &pinned)?.images, 1);
    let left: Vec<_> = store.list()?.iter().map(Image::digest).collect();
    assert_eq!(left, [images[2].digest(), images[1].digest()], "held and pinned ones stay");
    drop(held);
    assert_eq!(store.shrink(0, &pinned)?.images, 1);
    assert_eq!(store.hold(&images[2])?.map(drop), None, "what is gone cannot be held");
    Ok(())
}

#[test]
fn a_held_image_outlives_its_name() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let image = load(&store, "one:1", "1")?;
    let held = store.hold(&image)?.expect("it is there");
    assert_eq!(store.remove(&"one:1".parse()?, &[])?.images, 0);
    assert!(image.extents().iter().all(|extent| extent.path.is_file()));
    drop(held);
    assert_eq!(store.collect(&[])?.images, 1);
    assert!(files(directory.path())?.is_empty());
    Ok(())
}

#[test]
fn a_collection_waits_for_whoever_makes_an_image() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    load(&store, "one:1", "1")?;
    let before = files(&directory.path().join("layers"))?;
    let maker = File::open(directory.path().join("lock"))?;
    maker.lock_shared()?;
    assert!(store.remove(&"one:1".parse()?, &[])?.postponed);
    assert_eq!(files(&directory.path().join("layers"))?, before);
    drop(maker);
    assert!(!store.collect(&[])?.postponed);
    assert!(files(directory.path())?.is_empty());
    Ok(())
}

#[test]
fn leftovers_of_a_crash_are_passed_over_and_collected() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let image = load(&store, "one:1", "1")?;
    let clean = files(directory.path())?;
    let layers = directory.path().join("layers");
    let manifests = directory.path().join("manifests");
    fs::write(layers.join(".new-1-2-3.partial"), "half a layer")?;
    fs::write(manifests.join("sha256-00.partial"), "")?;
    fs::create_dir(manifests.join(".new-1-2-3"))?;
    fs::write(manifests.join(".new-1-2-3/manifest.json"), "half an image")?;
    fs::write(directory.path().join("refs/.new-1-2-3"), "half a name")?;
    assert_eq!(store.list()?, [image]);
    store.collect(&[])?;
    assert_eq!(files(directory.path())?, clean);
    Ok(())
}

#[test]
fn a_layer_half_made_by_a_crash_is_made_again() -> Result<()> {
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let image = load(&store, "one:1", "1")?;
    let expected = snapshot::of_image(&image)?;
    let layer = &image.extents()[1].path;
    let mut partial = layer.clone().into_os_string();
    partial.push(".partial");
    fs::rename(layer, &partial)?;
    File::options().write(true).open(&partial)?.set_len(5000)?;
    assert_eq!(store.get(&"one:1".parse()?)?, None, "an image without its layer is not there");
    let image = load(&store, "one:1", "1")?;
    assert!(snapshot::of_image(&image)? == expected);
    assert!(!fs::exists(&partial)?);
    Ok(())
}

#[test]
fn many_at_once_make_each_layer_once() -> Result<()> {
    let directory = TempDir::new()?;
    let images = thread::scope(|scope| {
        let work = |index: usize| {
            let store = ImageStore::open(directory.path());
            load(&store, &format!("image:{index}"), ["same", "other"][index % 2])
        };
        let threads: Vec<_> = (0..8).map(|index| scope.spawn(move || work(index))).collect();
        let results = threads.into_iter().map(|thread| thread.join().expect("no load panics"));
        results.collect::<Result<Vec<_>>>()
    })?;
    assert_eq!(images[0].digest(), images[2].digest());
    let names = files(directory.path())?;
    let count = |part: &str| names.keys().filter(|name| name.contains(part)).count();
    assert_eq!((count(".512.erofs"), count("disk.vmdk"), count("refs/")), (3, 2, 8), "{names:?}");
    assert_eq!(ImageStore::open(directory.path()).list()?.len(), 2);
    Ok(())
}

#[test]
fn a_store_can_be_moved() -> Result<()> {
    let directory = TempDir::new()?;
    let (before, after) = (directory.path().join("before"), directory.path().join("after"));
    let image = load(&ImageStore::open(&before), "one:1", "1")?;
    let size = image.size_bytes();
    fs::rename(&before, &after)?;
    let moved = ImageStore::open(&after).get(&"one:1".parse()?)?;
    let Some(moved) = moved else { anyhow::bail!("the image is gone") };
    let raw = directory.path().join("raw");
    run("qemu-img", &["convert", "-O", "raw", text(moved.disk())?, text(&raw)?])?;
    assert_eq!(fs::metadata(&raw)?.len(), size);
    assert!(fs::read(&raw)? == snapshot::disk_bytes(&moved)?);
    Ok(())
}

#[test]
fn the_store_is_for_its_owner_alone() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let directory = TempDir::new()?;
    let root = directory.path().join("images");
    load(&ImageStore::open(&root), "one:1", "1")?;
    assert_eq!(fs::metadata(&root)?.permissions().mode() & 0o777, 0o700);
    Ok(())
}
