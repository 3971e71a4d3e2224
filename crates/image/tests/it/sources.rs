//! One image by every way it can come: registry, layout, archives, streams.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::Result;
use microsandbox_image::{
    ArchiveSource, Digest, Error, Image, ImageStore, PullOptions, PullPolicy, PullProgress,
    Reference, RegistryAuth, Silent,
};
use tempfile::TempDir;

use crate::snapshot::{self, Snapshot, assert_same};
use crate::tarball::{directory, file, tarball};
use crate::tools::{Registry, layout, run, text};

/// Bytes that do not compress away, so that a layer is as long on the wire as it should be.
fn noise(seed: u32, kib: u32) -> Vec<u8> {
    let digests = (0..kib * 16).map(|n| Digest::of(&[seed, n].map(u32::to_le_bytes).concat()));
    digests.flat_map(|digest| digest.hex().into_bytes()).collect()
}

fn layers() -> Vec<Vec<u8>> {
    vec![
        tarball(&[directory("etc/"), file("etc/name", "base"), file("large", noise(1, 2000))]),
        tarball(&[file("etc/name", "changed"), file("more", noise(2, 300))]),
        tarball(&[file(".wh.more", ""), file("small", "x")]),
    ]
}

fn load(source: ArchiveSource) -> Result<(TempDir, Image)> {
    let store = TempDir::new()?;
    let image = ImageStore::open(store.path()).load(source, None, &Silent)?.remove(0);
    Ok((store, image))
}

async fn pull(reference: &str, options: &PullOptions) -> Result<(TempDir, Image)> {
    let store = TempDir::new()?;
    let reference: Reference = reference.parse()?;
    let image = ImageStore::open(store.path()).pull(&reference, options, &Silent).await?;
    Ok((store, image))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_source_gives_the_same_tree() -> Result<()> {
    let made = layout(&layers())?;
    let place = |name: &str| made.path().join(name);
    let source = format!("oci:{}:latest", text(&place("layout"))?);
    let copy = |arguments: &[&str]| run("skopeo", &[&["copy", &source], arguments].concat());
    copy(&[&format!("oci-archive:{}:x/y:oci", text(&place("oci.tar"))?)])?;
    copy(&[&format!("docker-archive:{}:x/y:docker", text(&place("docker.tar"))?)])?;
    run("gzip", &["-k", text(&place("docker.tar"))?])?;
    let registry = Registry::start()?;
    let gzip = registry.push(&place("layout"), "test/image:gzip")?;
    let zstd = format!("{}/test/image:zstd", registry.address);
    let zstd_layout = format!("oci:{}:latest", text(&place("zstd"))?);
    copy(&["--dest-compress-format=zstd", "--dest-compress", &zstd_layout])?;
    run("skopeo", &["copy", "--dest-tls-verify=false", &zstd_layout, &format!("docker://{zstd}")])?;

    let stream = |name: &str| -> Result<ArchiveSource> {
        Ok(ArchiveSource::Stream(Box::new(File::open(place(name))?)))
    };
    let (_store, expected) = load(ArchiveSource::Path(place("layout")))?;
    let tree: Snapshot = snapshot::of_image(&expected)?;
    assert_eq!(tree[&b"etc/name"[..]].size, 7);
    assert!(!tree.contains_key(&b"more"[..]) && tree.contains_key(&b"large"[..]));
    let oci: Reference = "x/y:oci".parse()?;
    let docker: Reference = "x/y:docker".parse()?;
    for (what, source, name) in [
        ("OCI archive", ArchiveSource::Path(place("oci.tar")), Some(&oci)),
        ("OCI archive as a stream", stream("oci.tar")?, Some(&oci)),
        ("docker-archive", ArchiveSource::Path(place("docker.tar")), Some(&docker)),
        ("docker-archive as a stream", stream("docker.tar")?, Some(&docker)),
        ("packed docker-archive", ArchiveSource::Path(place("docker.tar.gz")), Some(&docker)),
        ("zstd layout", ArchiveSource::Path(place("zstd")), None),
    ] {
        let (store, image) = load(source)?;
        assert_same(&snapshot::of_image(&image)?, &tree, what);
        assert_eq!(image.diff_ids(), expected.diff_ids(), "{what}");
        assert_eq!(image.references().first(), name, "{what}");
        assert_eq!(image.config(), expected.config(), "{what}");
        assert_no_leftovers(&store)?;
    }
    for name in [&gzip, &zstd] {
        let (store, image) = pull(name, &PullOptions::default()).await?;
        assert_same(&snapshot::of_image(&image)?, &tree, name);
        assert_eq!(image.references(), [name.parse()?], "{name}");
        assert_no_leftovers(&store)?;
    }
    Ok(())
}

#[test]
fn a_given_name_takes_the_place_of_the_archives_own() -> Result<()> {
    let made = layout(&layers())?;
    let store = TempDir::new()?;
    let store = ImageStore::open(store.path());
    let name: Reference = "mine:1".parse()?;
    let source = ArchiveSource::Path(made.path().join("layout"));
    let image = store.load(source, Some(&name), &Silent)?.remove(0);
    assert_eq!(image.references(), std::slice::from_ref(&name));
    assert_eq!(
        (image.config().cmd.as_slice(), image.config().env.as_slice()),
        (&["sh".into()][..], &["A=1".into()][..])
    );
    assert_eq!(store.get(&name)?, Some(image));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_decide_whether_the_registry_is_asked() -> Result<()> {
    let made = layout(&layers())?;
    let registry = Registry::start()?;
    let name = registry.push(&made.path().join("layout"), "policy:1")?;
    let reference: Reference = name.parse()?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let with = |policy| PullOptions::default().with_policy(policy);
    let never = store.pull(&reference, &with(PullPolicy::Never), &Silent).await;
    assert!(matches!(never, Err(Error::NotCached { .. })), "{never:?}");
    assert_eq!(fs::read_dir(directory.path())?.count(), 0, "asking left something");
    let pulled = store.pull(&reference, &with(PullPolicy::IfMissing), &Silent).await?;

    // The tag moves on: only `Always` notices.
    let other = layout(&[tarball(&[file("other", "x")])])?;
    registry.push(&other.path().join("layout"), "policy:1")?;
    for (policy, same) in
        [(PullPolicy::IfMissing, true), (PullPolicy::Never, true), (PullPolicy::Always, false)]
    {
        let image = store.pull(&reference, &with(policy), &Silent).await?;
        assert_eq!(image.digest() == pulled.digest(), same, "{policy:?}");
    }

    // A digest that is there needs no registry at all.
    drop(registry);
    let pinned = reference.with_digest(pulled.digest());
    let image = store.pull(&pinned, &PullOptions::default(), &Silent).await?;
    assert_eq!(image.digest(), pulled.digest());
    let gone = store.pull(&reference, &with(PullPolicy::Always), &Silent).await;
    let Err(error @ Error::Fetch { .. }) = gone else { anyhow::bail!("{gone:?}") };
    assert!(error.hint().is_some_and(|hint| hint.contains("reachable")), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_registry_does_not_have_is_named() -> Result<()> {
    let registry = Registry::start()?;
    let missing = format!("{}/no/such:thing", registry.address);
    let Err(error) = pull(&missing, &PullOptions::default()).await else {
        anyhow::bail!("{missing} was found");
    };
    let error = error.downcast::<Error>()?;
    assert!(matches!(error, Error::ImageNotFound { .. }), "{error:?}");
    assert!(error.to_string().contains(&missing), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_a_password_wants_the_right_one() -> Result<()> {
    let made = layout(&layers())?;
    let registry = Registry::start_with_password()?;
    let creds = ["--dest-creds=user:secret"];
    let name = registry.push_with(&made.path().join("layout"), "private:1", &creds)?;
    let basic =
        |password: &str| RegistryAuth::Basic { username: "user".into(), password: password.into() };
    for (auth, accepted) in
        [(basic("secret"), true), (basic("wrong"), false), (RegistryAuth::Anonymous, false)]
    {
        let options = PullOptions::default().with_auth(auth);
        match pull(&name, &options).await {
            Ok(_) => assert!(accepted, "{options:?}"),
            Err(error) => {
                let error = error.downcast::<Error>()?;
                assert!(
                    !accepted && matches!(error, Error::Denied { .. }),
                    "{options:?}: {error:?}"
                );
                assert!(!format!("{options:?} {error:?}").contains("wrong"), "a secret was shown");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_cut_off_goes_on_where_it_stopped() -> Result<()> {
    let made = layout(&layers())?;
    let registry = Registry::start()?;
    registry.push(&made.path().join("layout"), "cut:1")?;
    let proxy = CuttingProxy::start(&registry.address, 3)?;
    let (store, image) = pull(&format!("{}/cut:1", proxy.address), &PullOptions::default()).await?;
    assert_eq!(proxy.cuts_left(), 0, "nothing was cut");
    assert_eq!(image.diff_ids().len(), 3);
    assert_no_leftovers(&store)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_tells_what_happens_in_order() -> Result<()> {
    let made = layout(&layers())?;
    let registry = Registry::start()?;
    let name = registry.push(&made.path().join("layout"), "progress:1")?;
    let store = TempDir::new()?;
    let events = Mutex::new(Vec::new());
    let note = |event| events.lock().expect("no test thread panics with it").push(event);
    let options = PullOptions::default();
    ImageStore::open(store.path()).pull(&name.parse()?, &options, &note).await?;
    let events = events.into_inner().expect("no test thread panics with it");
    assert!(matches!(events.first(), Some(PullProgress::Resolving { .. })));
    assert!(matches!(events.get(1), Some(PullProgress::Resolved { layer_count: 3, .. })));
    assert!(matches!(events.last(), Some(PullProgress::Complete { layer_count: 3, .. })));
    for wanted in 0..3 {
        let mut received = 0;
        let mut finished = 0;
        for event in &events {
            match event {
                PullProgress::LayerDownloadProgress {
                    layer_index,
                    downloaded_bytes,
                    total_bytes,
                    ..
                } if *layer_index == wanted => {
                    assert!(
                        *downloaded_bytes > received && Some(*downloaded_bytes) <= *total_bytes
                    );
                    received = *downloaded_bytes;
                }
                PullProgress::LayerDownloadComplete { layer_index, downloaded_bytes, .. }
                    if *layer_index == wanted =>
                {
                    assert_eq!(*downloaded_bytes, received);
                }
                PullProgress::LayerMaterializeComplete { layer_index, .. }
                    if *layer_index == wanted =>
                {
                    finished += 1;
                }
                _ => {}
            }
        }
        assert_eq!((received > 0, finished), (true, 1), "layer {wanted}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_dropped_leaves_nothing_half_made() -> Result<()> {
    let made = layout(&layers())?;
    let registry = Registry::start()?;
    let name: Reference = registry.push(&made.path().join("layout"), "dropped:1")?.parse()?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let options = PullOptions::default();
    let (started, mut has_started) = tokio::sync::mpsc::unbounded_channel();
    let tell = move |event| {
        if matches!(event, PullProgress::LayerDownloadProgress { .. }) {
            // The receiver goes away after the first one.
            let _ = started.send(());
        }
    };
    tokio::select! {
        pulled = store.pull(&name, &options, &tell) => drop(pulled?),
        _ = has_started.recv() => {}
    }
    // The same pull again, to its end, waits for whatever the first one left behind to go.
    let image = store.pull(&name, &options, &Silent).await?;
    assert_eq!(image.references(), [name]);
    assert_no_leftovers(&directory)?;
    Ok(())
}

/// No file in the store that is still being made.
fn assert_no_leftovers(store: &TempDir) -> Result<()> {
    let names = crate::hostile::files(store.path())?;
    let odd: Vec<_> =
        names.keys().filter(|name| name.contains("partial") || name.contains(".new-")).collect();
    assert!(odd.is_empty(), "{odd:?}");
    Ok(())
}

/// Passes bytes to a registry and back, and closes the connection in the middle of long answers, a few times.
struct CuttingProxy {
    address: String,
    cuts: &'static AtomicUsize,
}

impl CuttingProxy {
    fn start(registry: &str, cuts: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let registry = registry.to_owned();
        // Lives as long as the threads, which live as long as the test program.
        let cuts: &'static AtomicUsize = Box::leak(Box::new(AtomicUsize::new(cuts)));
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(&registry) else { return };
                let (Ok(client_read), Ok(server_read)) = (client.try_clone(), server.try_clone())
                else {
                    return;
                };
                thread::spawn(move || forward(client_read, server, usize::MAX, None));
                thread::spawn(move || forward(server_read, client, 200_000, Some(cuts)));
            }
        });
        Ok(Self { address, cuts })
    }

    fn cuts_left(&self) -> usize {
        self.cuts.load(Ordering::SeqCst)
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, limit: usize, cuts: Option<&AtomicUsize>) {
    let mut buffer = [0; 16 << 10];
    let mut passed = 0;
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        passed += count;
        let cut = passed > limit
            && cuts.is_some_and(|cuts| {
                cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok()
            });
        if cut || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    // Both sides: the other direction ends with this one.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
