//! Real registries behind what stands before real registries: tokens, certificates, mirrors.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context, Result};
use microsandbox_image::{
    Digest, Error, Image, ImageStore, Mirror, Network, PullOptions, PullPolicy, Reference,
    RegistryAuth, Silent,
};
use tempfile::TempDir;

use crate::scripted::{Answer, Request, Server};
use crate::tarball::{file, tarball};
use crate::tools::{Registry, layout, run, text};

fn image() -> Result<TempDir> {
    layout(&[tarball(&[file("below", vec![7; 100_000])]), tarball(&[file("above", "x")])])
}

async fn pull(name: &str, options: &PullOptions) -> Result<Image, Error> {
    let store = TempDir::new().expect("there is room for tests");
    ImageStore::open(store.path()).pull(&name.parse::<Reference>()?, options, &Silent).await
}

fn basic(password: &str) -> RegistryAuth {
    RegistryAuth::Basic { username: "user".into(), password: password.into() }
}

/// An authority, `ca.pem`, and a certificate signed by it, for a loopback server and for tokens.
fn certificate(directory: &Path) -> Result<()> {
    let place = |name: &str| directory.join(name);
    let (ca_key, ca) = (place("ca-key.pem"), place("ca.pem"));
    let (key, certificate) = (place("key.pem"), place("cert.pem"));
    let make = |subject: &str, key: &Path, to: &Path, more: &[&str]| -> Result<()> {
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"];
        let names = ["-subj", subject, "-keyout", text(key)?, "-out", text(to)?];
        run("openssl", &[&request[..], &names, more].concat()).map(drop)
    };
    make("/CN=authority", &ca_key, &ca, &[])?;
    let more = [
        "-CA",
        text(&ca)?,
        "-CAkey",
        text(&ca_key)?,
        "-addext",
        "basicConstraints=critical,CA:FALSE",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
    ];
    make("/CN=server", &key, &certificate, &more)
}

/// Base64 as tokens have it (RFC 7515, 2).
fn base64url(path: &Path) -> Result<String> {
    let text = run("openssl", &["base64", "-A", "-in", text(path)?])?;
    Ok(text.trim().trim_end_matches('=').replace('+', "-").replace('/', "_"))
}

/// A token service that believes `user` with the password `secret`, and grants what is asked for.
fn token(directory: &Path, request: &Request) -> Result<Answer> {
    // "user:secret".
    if request.authorization.as_deref() != Some("Basic dXNlcjpzZWNyZXQ=") {
        return Ok(Answer::new("401 Unauthorized", &[], ""));
    }
    let query = request.path.split_once('?').map_or("", |(_, query)| query);
    let decoded = query.replace("%3A", ":").replace("%2C", ",").replace("%2F", "/");
    let scopes = decoded.split('&').filter_map(|pair| pair.strip_prefix("scope="));
    let access: Vec<serde_json::Value> = scopes
        .filter_map(|scope| {
            let [kind, name, actions] = scope.split(':').collect::<Vec<_>>().try_into().ok()?;
            let actions: Vec<&str> = actions.split(',').collect();
            Some(serde_json::json!({"type": kind, "name": name, "actions": actions}))
        })
        .collect();
    let work = TempDir::new()?;
    let place = |name: &str| work.path().join(name);
    let certificate = fs::read_to_string(directory.join("cert.pem"))?;
    let der: String = certificate.lines().filter(|line| !line.starts_with("--")).collect();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    fs::write(
        place("head"),
        serde_json::to_vec(&serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [der]}))?,
    )?;
    fs::write(
        place("claims"),
        serde_json::to_vec(&serde_json::json!({
            "iss": "tests", "sub": "user", "aud": "registry", "jti": "1",
            "exp": now + 300, "nbf": now - 60, "iat": now - 60, "access": access,
        }))?,
    )?;
    let signed = format!("{}.{}", base64url(&place("head"))?, base64url(&place("claims"))?);
    let message = place("signed");
    fs::write(&message, &signed)?;
    let (key, signature) = (directory.join("key.pem"), place("signature"));
    let arguments =
        ["dgst", "-sha256", "-sign", text(&key)?, "-out", text(&signature)?, text(&message)?];
    run("openssl", &arguments)?;
    let token = format!("{signed}.{}", base64url(&signature)?);
    Ok(Answer::ok(serde_json::to_vec(&serde_json::json!({"token": token, "expires_in": 300}))?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_tokens_gets_them() -> Result<()> {
    let made = image()?;
    let keys = TempDir::new()?;
    certificate(keys.path())?;
    let directory = keys.path().to_owned();
    let tokens = Server::start(move |request| token(&directory, request).ok())?;
    let auth = format!(
        "auth: {{token: {{realm: 'http://{}/token', service: registry, issuer: tests, rootcertbundle: {}}}}}\n",
        tokens.address,
        text(&keys.path().join("ca.pem"))?
    );
    let registry = Registry::start_with(&auth, "")?;
    let creds = ["--dest-creds=user:secret"];
    let name = registry.push_with(&made.path().join("layout"), "private/app:1", &creds)?;
    let before = tokens.requests().len();
    pull(&name, &PullOptions::default().with_auth(basic("secret"))).await?;
    let asked = &tokens.requests()[before..];
    assert_eq!(asked.len(), 1, "one token serves all of an image: {asked:?}");
    assert!(asked[0].path.contains("service=registry"), "{asked:?}");
    for auth in [basic("wrong"), RegistryAuth::Anonymous] {
        let denied = pull(&name, &PullOptions::default().with_auth(auth)).await;
        assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    }
    let bearer = RegistryAuth::Bearer { token: "stale".into() };
    let denied = pull(&name, &PullOptions::default().with_auth(bearer)).await;
    assert!(matches!(denied, Err(Error::Denied { .. })), "{denied:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_needs_a_certificate_that_is_trusted() -> Result<()> {
    let made = image()?;
    let (keys, others) = (TempDir::new()?, TempDir::new()?);
    certificate(keys.path())?;
    certificate(others.path())?;
    let (ours, other) = (keys.path().join("ca.pem"), others.path().join("ca.pem"));
    let (key, server) = (keys.path().join("key.pem"), keys.path().join("cert.pem"));
    let tls = format!(", tls: {{certificate: {}, key: {}}}", text(&server)?, text(&key)?);
    let registry = Registry::start_with("", &tls)?;
    let name = registry.push(&made.path().join("layout"), "app:1")?;

    let options = PullOptions::default;
    pull(&name, &options().with_ca_file(&other).with_ca_file(&ours)).await?;
    pull(&name, &options().with_insecure_host(&registry.address)).await?;
    for options in [options(), options().with_ca_file(&other), options().with_insecure_host("x")] {
        let refused = pull(&name, &options).await;
        let Err(error @ Error::Fetch { .. }) = refused else { anyhow::bail!("{refused:?}") };
        let text = format!("{:?}", anyhow::Error::new(error));
        assert!(text.contains("certificate"), "{text}");
    }
    fs::write(&other, "no certificate")?;
    for path in [&other, Path::new("/nonexistent.pem")] {
        let unread = pull(&name, &options().with_ca_file(path)).await;
        assert!(matches!(unread, Err(Error::ReadCertificates { .. })), "{unread:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn mirrors_are_asked_first_and_may_fail() -> Result<()> {
    let made = image()?;
    let (registry, mirror) = (Registry::start()?, Registry::start()?);
    let layout = made.path().join("layout");
    let origin = registry.push(&layout, "team/app:1")?;
    mirror.push(&layout, "hub/team/app:1")?;
    let with = |registry: &str, urls: &[String]| -> Result<PullOptions> {
        let add = |options: PullOptions, url: &String| -> Result<PullOptions> {
            Ok(options.with_mirror(format!("{registry}={url}").parse::<Mirror>()?))
        };
        urls.iter().try_fold(PullOptions::default(), add)
    };
    let sound = format!("http://{}/hub", mirror.address);
    let lacking = format!("http://{}", mirror.address);
    let gone = "http://127.0.0.1:1".to_owned();
    let broken = Server::start(|_| Some(Answer::ok("<html>")))?;
    let broken = format!("http://{}", broken.address);

    // There is no such registry: only the mirror can have it.
    let elsewhere = "registry.invalid/team/app:1";
    let urls = [gone.clone(), lacking.clone(), broken.clone(), sound];
    let image = pull(elsewhere, &with("registry.invalid", &urls)?).await?;
    assert_eq!(image.references()[0].to_string(), elsewhere);
    // None of these has it: the registry does.
    pull(&origin, &with(&registry.address, &[gone, lacking, broken])?).await?;
    // A mirror of something else is not asked.
    let missing = pull(elsewhere, &with("other.invalid", &urls)?).await;
    let Err(Error::Fetch { image, .. }) = missing else { anyhow::bail!("{missing:?}") };
    assert_eq!(image, elsewhere);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn platforms_are_chosen_from_nested_indexes() -> Result<()> {
    let sample = crate::scripted::Sample::new();
    let arm = crate::scripted::Sample::with_config(
        sample.layer.clone(),
        String::from_utf8(sample.config.clone())?.replace("amd64", "arm64"),
    );
    let index = |entries: &[(&[u8], &str)]| -> Vec<u8> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(bytes, architecture)| {
                serde_json::json!({
                    "mediaType": "application/vnd.oci.image.manifest.v1+json",
                    "digest": Digest::of(bytes).to_string(),
                    "size": bytes.len(),
                    "platform": {"os": "linux", "architecture": architecture},
                })
            })
            .collect();
        serde_json::json!({"schemaVersion": 2, "manifests": entries}).to_string().into_bytes()
    };
    let inner = index(&[(&arm.manifest, "arm64")]);
    let outer = index(&[(&sample.manifest, "amd64"), (&inner, "arm64")]);
    let documents = [arm.manifest.clone(), sample.manifest.clone(), inner];
    let samples = [sample, arm];
    let server = Server::start(move |request| {
        let named = |bytes: &&Vec<u8>| request.path.ends_with(&Digest::of(bytes).to_string());
        if let Some(document) = documents.iter().find(named) {
            return Some(Answer::ok(document));
        }
        if request.path.ends_with("/manifests/1") {
            return Some(Answer::ok(&outer));
        }
        samples.iter().find_map(|sample| sample.answer(request))
    })?;
    let name = format!("{}/app:1", server.address);
    for architecture in ["amd64", "arm64"] {
        let platform = format!("linux/{architecture}");
        let options = PullOptions::default().with_platform(platform.parse()?);
        let image = pull(&name, &options).await?;
        assert_eq!(image.config().platform().to_string(), platform);
    }
    let absent = pull(&name, &PullOptions::default().with_platform("linux/s390x".parse()?)).await;
    let Err(error @ Error::NoPlatform { .. }) = absent else { anyhow::bail!("{absent:?}") };
    assert!(error.hint().is_some_and(|hint| hint.contains("linux/amd64, linux/arm64")));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_there_needs_no_network() -> Result<()> {
    let made = image()?;
    let registry = Registry::start()?;
    let reference: Reference = registry.push(&made.path().join("layout"), "app:1")?.parse()?;
    let directory = TempDir::new()?;
    let store = ImageStore::open(directory.path());
    let always = PullOptions::default().with_policy(PullPolicy::Always);
    let offline = always.clone().with_network(Network::Offline);
    let absent = store.pull(&reference, &offline, &Silent).await;
    let Err(error @ Error::Offline { .. }) = absent else { anyhow::bail!("{absent:?}") };
    assert!(error.to_string().contains(&reference.familiar()));
    assert!(error.hint().context("there is a way")?.contains("msb save"));
    assert_eq!(fs::read_dir(directory.path())?.count(), 0, "asking left something");

    let image = store.pull(&reference, &always, &Silent).await?;
    drop(registry);
    let pinned = reference.with_digest(image.digest());
    assert_eq!(store.pull(&pinned, &always, &Silent).await?.digest(), image.digest());
    assert_eq!(store.pull(&reference, &offline, &Silent).await?.digest(), image.digest());
    Ok(())
}
