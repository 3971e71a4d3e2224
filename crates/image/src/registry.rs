//! Registries: the distribution protocol (v2), as far as pulling needs it.
//!
//! [`Client`] speaks to one repository. It hands out documents that match their digest, and layers as streams of
//! bytes that somebody else checks. Every read has a deadline; a layer that is cut off goes on where it stopped.

mod auth;
mod challenge;

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, HeaderMap, RANGE, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

pub use self::auth::RegistryAuth;
use self::auth::{Authorization, Authorizer};
use crate::manifest::{ACCEPTED_MANIFESTS, Descriptor, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES};
use crate::{Digest, Error, Reference};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a registry may send nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Tries of a request that the registry turns away for now.
const MAX_TRIES: u32 = 5;

/// Longest wait between tries, whatever the registry asks for.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Reconnections in a row that bring no byte before a layer is given up.
const MAX_FRUITLESS_RESUMES: u32 = 3;

/// Docker Hub's names: the registry people write, and the host that serves it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A connection to one repository.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    reference: Reference,
    /// `https://host/v2/repository`.
    base: String,
    authorizer: Authorizer,
}

impl Client {
    /// A client for the repository of `reference`; connects when first asked for something.
    pub(crate) fn new(
        reference: &Reference,
        auth: &RegistryAuth,
        plain_http_hosts: &[String],
    ) -> Result<Self, Error> {
        // Without a provider the client cannot be built; one that the program has chosen is left alone.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = reference.registry();
        let host = if registry == DOCKER_HUB { DOCKER_HUB_HOST } else { registry };
        let plain = reference.is_loopback() || plain_http_hosts.iter().any(|host| host == registry);
        let scheme = if plain { "http" } else { "https" };
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("microsandbox/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .redirect(reqwest::redirect::Policy::limited(10));
            // A proxy's loopback is another machine.
            if reference.is_loopback() { builder.no_proxy() } else { builder }
        };
        // A machine without certificates of authorities can still talk to its own registry; without encryption none
        // is needed, and whatever that registry redirects to with encryption is refused.
        let built = builder().build().or_else(|fault| match plain {
            true => builder().tls_certs_only([]).build(),
            false => Err(fault),
        });
        let http = built.map_err(|source| Error::SetUpTls {
            registry: registry.to_owned(),
            source: source.into(),
        })?;
        Ok(Self {
            http,
            reference: reference.clone(),
            base: format!("{scheme}://{host}/v2/{}", reference.repository()),
            authorizer: Authorizer::new(reference, auth.clone(), plain),
        })
    }

    /// The manifest or index that `selector` (a tag or a digest) names.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<Vec<u8>, Error> {
        let url = format!("{}/manifests/{selector}", self.base);
        let mut headers = HeaderMap::new();
        for accepted in ACCEPTED_MANIFESTS {
            headers.append(ACCEPT, reqwest::header::HeaderValue::from_static(accepted));
        }
        let response = self.get(&url, &headers).await?;
        let named = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        let subject = "the manifest";
        let limit = MAX_MANIFEST_BYTES;
        let bytes = self.body(response, limit).await?.ok_or_else(|| Error::BlobTooLarge {
            subject,
            digest: named.unwrap_or_else(|| Digest::of(selector.as_bytes())),
            limit,
        })?;
        let actual = Digest::of(&bytes);
        match selector.parse::<Digest>().ok().or(named) {
            Some(expected) if expected != actual => {
                Err(Error::BlobDigest { subject, expected, actual })
            }
            _ => Ok(bytes),
        }
    }

    /// A blob that has to fit into memory.
    pub(crate) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let subject = "the configuration";
        let limit = descriptor.size.min(MAX_CONFIG_BYTES);
        let response = self.get(&self.blob_url(descriptor), &HeaderMap::new()).await?;
        let digest = descriptor.digest;
        let bytes = self.body(response, limit).await?.ok_or(Error::BlobTooLarge {
            subject,
            digest,
            limit,
        })?;
        let actual = Digest::of(&bytes);
        if actual != digest {
            return Err(Error::BlobDigest { subject, expected: digest, actual });
        }
        Ok(bytes)
    }

    /// Sends a blob's bytes to `sink`, going on where the connection broke. Their digest is the receiver's matter.
    ///
    /// A receiver that goes away ends the download without an error: it has one of its own.
    pub(crate) async fn download(
        &self,
        descriptor: &Descriptor,
        sink: mpsc::Sender<Bytes>,
        on_bytes: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<u64, Error> {
        let url = self.blob_url(descriptor);
        let mut received = 0;
        let mut fruitless = 0;
        loop {
            let start = received;
            match self.download_from(&url, &mut received, &sink, on_bytes).await {
                Ok(()) => return Ok(received),
                Err(error) if received >= descriptor.size => return Err(error),
                Err(error) => {
                    fruitless = if received > start { 0 } else { fruitless + 1 };
                    if received == 0 || fruitless > MAX_FRUITLESS_RESUMES {
                        return Err(error);
                    }
                    tracing::debug!(%url, received, %error, "resuming a layer");
                    tokio::time::sleep(backoff(fruitless)).await;
                }
            }
        }
    }

    /// One connection's worth of [`Self::download`], from byte `received` on.
    async fn download_from(
        &self,
        url: &str,
        received: &mut u64,
        sink: &mpsc::Sender<Bytes>,
        on_bytes: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        let mut skip = 0;
        if *received > 0
            && let Ok(range) = format!("bytes={received}-").parse()
        {
            headers.insert(RANGE, range);
        }
        let response = self.get(url, &headers).await?;
        if *received > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
            // The registry does not resume: it sends all of it again.
            skip = *received;
        }
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|source| self.fault(source))?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            if chunk.is_empty() {
                continue;
            }
            let count = chunk.len() as u64;
            if sink.send(chunk).await.is_err() {
                return Ok(());
            }
            *received += count;
            on_bytes(*received);
        }
        Ok(())
    }

    fn blob_url(&self, descriptor: &Descriptor) -> String {
        format!("{}/blobs/{}", self.base, descriptor.digest)
    }

    /// A successful answer: authorizes when asked to, and tries again when told to come later.
    async fn get(&self, url: &str, headers: &HeaderMap) -> Result<Response, Error> {
        let mut refused: Option<Authorization> = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let authorization = self.authorizer.current().await;
            let mut request = self.http.get(url).headers(headers.clone());
            if let Some(authorization) = &authorization {
                request = request.header(reqwest::header::AUTHORIZATION, authorization.header());
            }
            let response = request.send().await.map_err(|source| self.fault(source))?;
            match response.status() {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if refused.is_none() => {
                    let challenge = response.headers().get_all(WWW_AUTHENTICATE);
                    let challenges = challenge.iter().filter_map(|value| value.to_str().ok());
                    let challenge = challenge::choose(challenges);
                    let fresh =
                        self.authorizer.answer(&self.http, challenge, authorization).await?;
                    refused = Some(fresh);
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return Err(self.denied()),
                StatusCode::NOT_FOUND => {
                    return Err(Error::ImageNotFound { reference: self.reference.clone().into() });
                }
                status
                    if tries < MAX_TRIES
                        && (status.is_server_error()
                            || status == StatusCode::TOO_MANY_REQUESTS) =>
                {
                    let wait = retry_after(response.headers()).unwrap_or_else(|| backoff(tries));
                    tracing::debug!(url, %status, ?wait, "the registry asks to come later");
                    tokio::time::sleep(wait.min(MAX_BACKOFF)).await;
                }
                status => {
                    return Err(Error::HttpStatus {
                        registry: self.reference.registry().to_owned(),
                        status: status.as_u16(),
                        url: url.to_owned(),
                    });
                }
            }
        }
    }

    /// The whole body, or `None` if it is larger than `limit`.
    async fn body(&self, response: Response, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let mut bytes = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|source| self.fault(source))?;
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Ok(None);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }

    fn denied(&self) -> Error {
        Error::Denied {
            registry: self.reference.registry().to_owned(),
            repository: self.reference.repository().to_owned(),
        }
    }

    fn fault(&self, source: reqwest::Error) -> Error {
        http_fault(self.reference.registry(), source)
    }
}

/// An error without the URL, which may carry a signature that grants access.
fn http_fault(registry: &str, source: reqwest::Error) -> Error {
    let registry = registry.to_owned();
    if source.is_timeout() && !source.is_connect() {
        return Error::Stalled { registry, after: READ_TIMEOUT };
    }
    Error::Http { registry, source: source.without_url().into() }
}

/// 0.5 s, doubled with each try.
fn backoff(tries: u32) -> Duration {
    Duration::from_millis(250 << tries.min(8))
}

/// The seconds a registry asks for; dates, the header's other form, are too rare to read.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}
