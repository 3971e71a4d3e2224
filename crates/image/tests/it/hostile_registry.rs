//! Hostile and broken registries: a typed error that names image and part, and a store that is what it was.

use std::io::{Cursor, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use microsandbox_image::{
    ArchiveSource, Digest, Error, Image, ImageStore, PullOptions, Reference, RegistryAuth, Silent,
};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::hostile::{docker_archive, files};
use crate::scripted::{Answer, Request, Sample, Server, manifest};
use crate::tarball::{file, tarball};
use crate::tools::chain;

/// How long a registry may send nothing where that is what it does.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Cases at a time: more would make a loaded machine look like a registry that stalls.
const PARALLEL_CASES: usize = 6;

async fn pull(store: &ImageStore, name: &str) -> Result<Image, Error> {
    pull_with(store, name, PullOptions::default()).await
}

async fn pull_with(store: &ImageStore, name: &str, options: PullOptions) -> Result<Image, Error> {
    let options = options
        .with_auth(RegistryAuth::Basic { username: "user".into(), password: "secret".into() });
    store.pull(&name.parse::<Reference>()?, &options, &Silent).await
}

type Misbehaviour = Arc<dyn Fn(&Sample, &Request) -> Option<Answer> + Send + Sync>;

/// One case: what is wrong, and what the error must say.
struct Case {
    name: &'static str,
    sample: Sample,
    /// Answers where the registry misbehaves; elsewhere it does not.
    misbehaves: Misbehaviour,
    /// The part that the error must name.
    part: Part,
    expected: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Config,
    Layer,
    Manifest,
}

impl Part {
    fn is_asked_for(self, sample: &Sample, request: &Request) -> bool {
        let is_blob = |bytes: &[u8]| request.path.ends_with(&Digest::of(bytes).to_string());
        match self {
            Self::Config => is_blob(&sample.config),
            Self::Layer => is_blob(&sample.layer),
            Self::Manifest => request.path.contains("/manifests/"),
        }
    }
}

/// A case in which one part is answered wrongly.
fn case(
    name: &'static str,
    part: Part,
    answer: impl Fn(&Sample, &Request) -> Answer + Send + Sync + 'static,
    expected: &'static str,
) -> Case {
    let misbehaves = move |sample: &Sample, request: &Request| {
        part.is_asked_for(sample, request).then(|| answer(sample, request))
    };
    Case { name, sample: Sample::new(), misbehaves: Arc::new(misbehaves), part, expected }
}

/// A case in which every answer is what was asked for, and that is unsound.
fn unsound(name: &'static str, sample: Sample, part: Part, expected: &'static str) -> Case {
    Case { name, sample, misbehaves: Arc::new(|_, _| None), part, expected }
}

/// Pulls what must fail into a store that has an image already, which must not change.
async fn check(case: Case) -> Result<()> {
    let Case { name, sample, misbehaves, part, expected } = case;
    let layer = Digest::of(&sample.layer).to_string();
    let server = Server::start(move |request| {
        misbehaves(&sample, request).or_else(|| sample.answer(request))
    })?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let archive = docker_archive(&[tarball(&[file("good", "x")])]);
    store.load(ArchiveSource::Stream(Box::new(Cursor::new(archive))), None, &Silent)?;
    let before = files(directory.path())?;
    let image = format!("{}/team/app:1", server.address);
    let mut options = PullOptions::default();
    if expected.starts_with("sent nothing") {
        options = options.with_stall_timeout(PATIENCE);
    }
    let pulled = pull_with(&store, &image, options).await;
    let Err(error) = pulled else { anyhow::bail!("{name} was accepted") };
    let text = chain(&error);
    anyhow::ensure!(text.contains(expected), "{name}: {text:?} does not say {expected:?}");
    anyhow::ensure!(text.contains("team/app"), "{name}: {text:?} names no image");
    let names_layer = part != Part::Layer || text.contains(&layer);
    anyhow::ensure!(names_layer, "{name}: {text:?} names no layer");
    anyhow::ensure!(!text.contains("secret"), "{name}: {text:?} tells a secret");
    anyhow::ensure!(files(directory.path())? == before, "{name} changed the store");
    Ok(())
}

fn bad_documents() -> Vec<Case> {
    use Part::{Config, Manifest};
    let html = |_: &Sample, _: &Request| {
        let headers = [("Content-Type", "text/html; charset=utf-8".to_owned())];
        Answer::new("200 OK", &headers, "<html>Log in to the hotel's network</html>")
    };
    let other_digest = |sample: &Sample, _: &Request| {
        let headers = [("Docker-Content-Digest", Digest::of(b"other").to_string())];
        Answer::new("200 OK", &headers, &sample.manifest)
    };
    let path = |sample: &Sample, _: &Request| {
        let text = String::from_utf8_lossy(&sample.manifest);
        let digest = Digest::of(&sample.layer).to_string();
        Answer::ok(text.replace(&digest, "sha256:../../../../../../etc/passwd"))
    };
    let endless = |_: &Sample, _: &Request| Answer::new("200 OK", &[], vec![b' '; 5 << 20]);
    let circle = |_: &Sample, request: &Request| Answer::redirect(&request.path);
    let no_image = |_: &Sample, _: &Request| {
        let digest = Digest::of(b"x");
        Answer::ok(format!(
            r#"{{"manifests":[{{"digest":"{digest}","size":1,"platform":{{"os":"plan9","architecture":"mips"}}}}]}}"#
        ))
    };
    vec![
        case("a web page", Manifest, html, "it sent a web page"),
        case("no JSON", Manifest, |_, _| Answer::ok("hello"), "is not an image manifest"),
        case("nothing", Manifest, |_, _| Answer::ok(""), "is not an image manifest"),
        case("a manifest of another digest", Manifest, other_digest, "the manifest has digest"),
        case("a digest that is a path", Manifest, path, "is not an image manifest"),
        case("an endless manifest", Manifest, endless, "larger than 4194304 bytes"),
        case(
            "a manifest that says it is huge",
            Manifest,
            |_, _| Answer::lying(1 << 40, "{"),
            "larger than 4194304 bytes",
        ),
        case("a manifest that never comes", Manifest, |_, _| stall(), "sent nothing for 1.5s"),
        case("manifests in a circle", Manifest, circle, "redirects in circles"),
        case("nothing for this machine", Manifest, no_image, "has no image for linux/"),
        case("failures", Manifest, |_, _| Answer::new("502 Bad", &[], ""), "answers 502"),
        case(
            "refusal without a word",
            Manifest,
            |_, _| Answer::new("401 Unauthorized", &[], ""),
            "denies access",
        ),
        case(
            "another configuration",
            Config,
            |sample, _| Answer::ok(String::from_utf8_lossy(&sample.config).replace('6', "7")),
            "the configuration has digest",
        ),
        case(
            "more configuration than promised",
            Config,
            |sample, _| Answer::ok([&*sample.config, b" "].concat()),
            "larger than",
        ),
        case(
            "half a configuration",
            Config,
            |sample, _| Answer::lying(sample.config.len(), &sample.config[..9]),
            "fetch the configuration",
        ),
        case("no configuration", Config, |_, _| Answer::new("404 Gone", &[], ""), "answers 404"),
        unsound(
            "a configuration that is none",
            Sample::with_config(tarball(&[]), "<html>"),
            Config,
            "is not an image configuration",
        ),
        unsound(
            "too many diff ids",
            Sample::promising(tarball(&[]), &vec![Digest::of(b"").to_string(); 2]),
            Config,
            "lists 1 layers but 2 diff ids",
        ),
    ]
}

/// Headers, then nothing.
fn stall() -> Answer {
    Answer::new("200 OK", &[("Content-Length", "10".into())], "").then_stalls()
}

fn bad_layers() -> Vec<Case> {
    use Part::Layer;
    let half = |sample: &Sample| sample.layer[..sample.layer.len() / 2].to_vec();
    let cut = move |sample: &Sample, _: &Request| Answer::lying(sample.layer.len(), half(sample));
    let elsewhere = move |sample: &Sample, request: &Request| match request.range {
        None => cut(sample, request),
        Some(start) => sample.part(start + 512),
    };
    let stalls = move |sample: &Sample, request: &Request| cut(sample, request).then_stalls();
    let other = |sample: &Sample, _: &Request| {
        let mut layer = sample.layer.clone();
        layer[600] = b'y';
        Answer::ok(layer)
    };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tarball(&[file("f", "x")])).expect("memory takes everything");
    let mut gzip = gzip.finish().expect("memory takes everything");
    gzip.truncate(gzip.len() - 12);
    let any = [Digest::of(b"x").to_string()];
    vec![
        case("a layer of other bytes", Layer, other, "the blob has digest"),
        case(
            "a layer that says it is longer",
            Layer,
            |sample, _| Answer::ok([&*sample.layer, b"more"].concat()),
            "larger than",
        ),
        case(
            "a layer that is longer",
            Layer,
            |sample, _| Answer::new("200 OK", &[], [&*sample.layer, b"more"].concat()),
            "bytes instead of",
        ),
        case(
            "a layer that ends early, in order",
            Layer,
            move |sample, _| Answer::ok(half(sample)),
            "bytes instead of",
        ),
        case("a layer that is always cut off", Layer, cut, "reach registry"),
        case("a layer that resumes elsewhere", Layer, elsewhere, "at another byte"),
        case("a layer that stops coming", Layer, stalls, "sent nothing for 1.5s"),
        case(
            "a layer in a circle",
            Layer,
            |_, request| Answer::redirect(&request.path),
            "redirects in circles",
        ),
        case("a layer that is not there", Layer, |_, _| Answer::new("404 No", &[], ""), "404"),
        unsound(
            "another diff id",
            Sample::promising(tarball(&[file("f", "x")]), &any),
            Layer,
            "the unpacked layer has digest",
        ),
        unsound(
            "an unknown compression",
            Sample::promising(b"BZh91AY&SY".to_vec(), &any),
            Layer,
            "compressed with bzip2",
        ),
        unsound("half a gzip", Sample::promising(gzip, &any), Layer, "decompress the layer"),
        unsound(
            "no archive",
            Sample::promising(vec![b'x'; 4096], &any),
            Layer,
            "bad tar header at byte 0",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn registries_that_lie_change_nothing() -> Result<()> {
    let (mut cases, turns) = (JoinSet::new(), Arc::new(Semaphore::new(PARALLEL_CASES)));
    for case in bad_documents().into_iter().chain(bad_layers()) {
        let turn = Arc::clone(&turns);
        cases.spawn(async move {
            let _turn = turn.acquire().await?;
            check(case).await
        });
    }
    let results = cases.join_all().await;
    let faults: Vec<String> =
        results.into_iter().filter_map(Result::err).map(|error| error.to_string()).collect();
    anyhow::ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_digest_that_was_asked_for_must_come() -> Result<()> {
    let sample = Sample::new();
    let server = Server::start(move |request| sample.answer(request))?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let name = format!("{}/team/app@{}", server.address, Digest::of(b"other"));
    let Err(error) = pull(&store, &name).await else { anyhow::bail!("it was accepted") };
    let text = chain(&error);
    assert!(text.starts_with("fetch the manifest of ") && text.contains("has digest"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_without_end_are_given_up() -> Result<()> {
    let mut bytes = Sample::new().manifest;
    let mut documents = Vec::new();
    for _ in 0..8 {
        documents.push(bytes.clone());
        bytes = format!(
            r#"{{"manifests":[{{"digest":"{}","size":{}}}]}}"#,
            Digest::of(&bytes),
            bytes.len()
        )
        .into_bytes();
    }
    let first = bytes.clone();
    let server = Server::start(move |request| {
        let wanted = request.path.rsplit('/').next()?;
        let known = documents.iter().find(|bytes| Digest::of(bytes).to_string() == wanted);
        Some(Answer::ok(known.unwrap_or(&first)))
    })?;
    let store = TempDir::new()?;
    let pulled = pull(&ImageStore::open(store.path()), &format!("{}/a:1", server.address)).await;
    assert!(matches!(pulled, Err(Error::NestedTooDeep { .. })), "{pulled:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn media_types_that_lie_do_not_matter() -> Result<()> {
    let mut sample = Sample::new();
    let lie = r#""mediaType":"application/vnd.oci.image.index.v1+json","annotations":{"a":"b"},"#;
    sample.manifest = manifest(&sample.config, &sample.layer, lie);
    let server = Server::start(move |request| {
        let mut answer = sample.answer(request);
        if request.path.contains("/manifests/") {
            let headers =
                [("Content-Type", "application/vnd.docker.image.rootfs.diff.tar.gzip".into())];
            answer = Some(Answer::new("200 OK", &headers, &sample.manifest));
        }
        answer
    })?;
    let store = TempDir::new()?;
    let image = pull(&ImageStore::open(store.path()), &format!("{}/a:1", server.address)).await?;
    assert_eq!(image.diff_ids().len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_to_wait_is_waited_for() -> Result<()> {
    let sample = Sample::new();
    let server = Server::start(move |request| match request.earlier {
        0 => Some(Answer::new("429 Too Many Requests", &[("Retry-After", "1".into())], "slowly")),
        1 if request.path.contains("/blobs/") => Some(Answer::new("503 Busy", &[], "")),
        _ => sample.answer(request),
    })?;
    let store = TempDir::new()?;
    let start = Instant::now();
    pull(&ImageStore::open(store.path()), &format!("{}/a:1", server.address)).await?;
    // Manifest, configuration and layer, one after the other, and half a second for each 503.
    let waited = start.elapsed();
    assert!(waited >= Duration::from_secs(3), "it waited for {waited:?} only");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_goes_on_whether_the_registry_resumes_or_not() -> Result<()> {
    for resumes in [true, false] {
        let sample = Sample::new();
        let half = sample.layer.len() / 2;
        let layer = Digest::of(&sample.layer).to_string();
        let wanted = layer.clone();
        let server = Server::start(move |request| {
            let is_first = request.earlier == 0 && request.path.ends_with(&wanted);
            if is_first {
                return Some(Answer::lying(sample.layer.len(), &sample.layer[..half]));
            }
            let range = request.range.filter(|_| resumes);
            sample.answer(&Request { range, ..request.clone() })
        })?;
        let store = TempDir::new()?;
        let store = ImageStore::open(store.path());
        let image = pull(&store, &format!("{}/a:1", server.address)).await?;
        assert_eq!(image.diff_ids()[0].to_string(), layer);
        let asked: Vec<_> = server
            .requests()
            .into_iter()
            .filter(|request| request.path.ends_with(&layer))
            .map(|request| request.range)
            .collect();
        let [None, Some(start)] = asked[..] else { anyhow::bail!("{asked:?}") };
        assert!((1..=half).contains(&start), "resumed at {start}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_page_is_no_token() -> Result<()> {
    let sample = Sample::new();
    let tokens = Server::start(|_| Some(Answer::ok("<html>")))?;
    let realm = format!("http://{}/token", tokens.address);
    let server = Server::start(move |request| match &request.authorization {
        Some(_) => sample.answer(request),
        None => {
            let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
            Some(Answer::new("401 Unauthorized", &[("WWW-Authenticate", challenge)], ""))
        }
    })?;
    let store = TempDir::new()?;
    let store = ImageStore::open(store.path());
    let Err(error) = pull(&store, &format!("{}/a:1", server.address)).await else {
        anyhow::bail!("a web page was taken for a token")
    };
    assert!(chain(&error).contains("the token service's answer is no token"), "{error:?}");
    let asked = tokens.requests();
    let token = asked.iter().find(|request| request.path.starts_with("/token"));
    let token = token.context("the token service was asked")?;
    assert!(token.path.contains("scope=repository%3Aa%3Apull"), "{}", token.path);
    assert!(server.requests().iter().all(|request| request.authorization.is_none()));
    Ok(())
}
