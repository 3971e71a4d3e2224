//! Registries: the distribution protocol (v2), as far as pulling needs it.
//!
//! [`Client`] speaks for one repository, to its mirrors first and then to its registry. It hands out documents that
//! match their digest, and layers as streams of bytes that somebody else checks. Every read has a deadline; a layer
//! that is cut off goes on where it stopped. [`endpoint`] is one host, [`auth`] what it wants to be shown.

mod auth;
mod challenge;
mod endpoint;
mod settings;

use bytes::Bytes;
use futures_util::StreamExt;
use reqwest::header::{ACCEPT, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use tokio::sync::mpsc;

pub use self::auth::RegistryAuth;
use self::endpoint::{Endpoint, Site, backoff};
pub use self::settings::{Mirror, RegistrySettings};
use crate::manifest::{
    ACCEPTED_MANIFESTS, Descriptor, Document, MAX_CONFIG_BYTES, MAX_MANIFEST_BYTES,
};
use crate::{Digest, Error, Reference};

/// Reconnections in a row that bring no byte before a layer, or a document, is given up at one host.
const MAX_FRUITLESS_RESUMES: u32 = 3;

/// Docker Hub's names: the registry people write, and the host that serves it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A way to one repository.
#[derive(Debug)]
pub(crate) struct Client {
    reference: Reference,
    /// Mirrors in the order they are to be tried, the registry itself last.
    sites: Vec<Site>,
}

impl Client {
    /// A client for the repository of `reference`; connects when first asked for something.
    pub(crate) fn new(reference: &Reference, settings: &RegistrySettings) -> Result<Self, Error> {
        Ok(Self { reference: reference.clone(), sites: Site::all(reference, settings)? })
    }

    /// The manifest or index that `selector` (a tag or a digest) names.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<Vec<u8>, Error> {
        let mut headers = HeaderMap::new();
        for accepted in ACCEPTED_MANIFESTS {
            headers.append(ACCEPT, HeaderValue::from_static(accepted));
        }
        let request = Request {
            path: format!("manifests/{selector}"),
            headers,
            subject: "the manifest",
            promised: selector.parse().ok(),
            limit: MAX_MANIFEST_BYTES,
            check: |bytes| Document::parse(bytes).map(drop),
        };
        self.document(&request).await
    }

    /// A blob that has to fit into memory.
    pub(crate) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, Error> {
        let request = Request {
            path: format!("blobs/{}", descriptor.digest),
            headers: HeaderMap::new(),
            subject: "the configuration",
            promised: Some(descriptor.digest),
            limit: descriptor.size.min(MAX_CONFIG_BYTES),
            check: |_| Ok(()),
        };
        self.document(&request).await
    }

    /// Asks one site after the other; the last answer counts.
    async fn document(&self, request: &Request) -> Result<Vec<u8>, Error> {
        let mut outcome = Err(self.not_found());
        for site in self.usable_sites() {
            outcome = match site.endpoint(&self.reference).await {
                Ok(endpoint) => self.document_from(endpoint, request).await,
                Err(error) => Err(error),
            };
            match &outcome {
                Ok(_) => break,
                Err(error) => site.note_fault(error),
            }
        }
        outcome
    }

    async fn document_from(
        &self,
        endpoint: &Endpoint,
        request: &Request,
    ) -> Result<Vec<u8>, Error> {
        let mut tries = 0;
        loop {
            tries += 1;
            let response = endpoint.get(&request.path, &request.headers, &self.reference).await?;
            match read_document(endpoint, request, response).await {
                Err(error) if endpoint::is_cut(&error) && tries <= MAX_FRUITLESS_RESUMES => {
                    tracing::debug!(%error, path = request.path, "asking again");
                    tokio::time::sleep(backoff(tries)).await;
                }
                outcome => return outcome,
            }
        }
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
        let mut download = Download { descriptor, sink, on_bytes, received: 0 };
        let mut outcome = Err(self.not_found());
        for site in self.usable_sites() {
            outcome = match site.endpoint(&self.reference).await {
                Ok(endpoint) => download.run(endpoint, &self.reference).await,
                Err(error) => Err(error),
            };
            match &outcome {
                Ok(()) => break,
                Err(error) => site.note_fault(error),
            }
        }
        outcome.map(|()| download.received)
    }

    /// Mirrors that have failed are left alone; the registry is always asked.
    fn usable_sites(&self) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(|site| site.is_usable())
    }

    fn not_found(&self) -> Error {
        Error::ImageNotFound { reference: self.reference.clone().into() }
    }
}

/// A document to be asked for.
struct Request {
    path: String,
    headers: HeaderMap,
    subject: &'static str,
    promised: Option<Digest>,
    limit: u64,
    /// What a site that has something else under the name is passed over for.
    check: fn(&[u8]) -> Result<(), Error>,
}

/// The whole body, if it is no larger than it may be and what it was asked for as.
async fn read_document(
    endpoint: &Endpoint,
    request: &Request,
    response: Response,
) -> Result<Vec<u8>, Error> {
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let named = header("docker-content-digest").and_then(|value| value.parse::<Digest>().ok());
    if header(CONTENT_TYPE.as_str()).is_some_and(|value| value.starts_with("text/html")) {
        return Err(endpoint.odd("it sent a web page"));
    }
    let expected = request.promised.or(named);
    let Request { subject, limit, .. } = *request;
    let too_large = || Error::BlobTooLarge {
        subject,
        digest: expected.unwrap_or_else(|| Digest::of(request.path.as_bytes())),
        limit,
    };
    if response.content_length().is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let mut stream = response.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|source| endpoint.fault(source))?;
        if (bytes.len() + chunk.len()) as u64 > limit {
            return Err(too_large());
        }
        bytes.extend_from_slice(&chunk);
    }
    let actual = Digest::of(&bytes);
    match expected {
        Some(expected) if expected != actual => {
            Err(Error::BlobDigest { subject, expected, actual })
        }
        _ => (request.check)(&bytes).map(|()| bytes),
    }
}

/// A blob on its way.
struct Download<'a> {
    descriptor: &'a Descriptor,
    sink: mpsc::Sender<Bytes>,
    on_bytes: &'a (dyn Fn(u64) + Send + Sync),
    received: u64,
}

impl Download<'_> {
    /// Fetches what is missing, over as many connections as it takes while each brings something.
    async fn run(&mut self, endpoint: &Endpoint, reference: &Reference) -> Result<(), Error> {
        let mut fruitless = 0;
        loop {
            let start = self.received;
            let outcome = self.connect(endpoint, reference).await;
            let is_done = self.received >= self.descriptor.size || self.sink.is_closed();
            match outcome {
                Ok(()) if is_done => return Ok(()),
                Err(error) if !endpoint::is_cut(&error) || is_done => return Err(error),
                outcome => {
                    fruitless = if self.received > start { 0 } else { fruitless + 1 };
                    if fruitless > MAX_FRUITLESS_RESUMES {
                        // Ended in order each time, it is simply shorter than promised: the receiver says so.
                        return outcome;
                    }
                    tracing::debug!(received = self.received, ?outcome, "resuming a layer");
                    tokio::time::sleep(backoff(fruitless)).await;
                }
            }
        }
    }

    /// One connection's worth, from the first missing byte on.
    async fn connect(&mut self, endpoint: &Endpoint, reference: &Reference) -> Result<(), Error> {
        let mut headers = HeaderMap::new();
        if self.received > 0
            && let Ok(range) = format!("bytes={}-", self.received).parse()
        {
            headers.insert(RANGE, range);
        }
        let path = format!("blobs/{}", self.descriptor.digest);
        let response = endpoint.get(&path, &headers, reference).await?;
        let start = first_byte(&response);
        if start > self.received {
            return Err(endpoint.odd("it resumed a layer at another byte than asked for"));
        }
        let end = response.content_length().and_then(|length| start.checked_add(length));
        if end.is_some_and(|end| end > self.descriptor.size) {
            return Err(Error::BlobTooLarge {
                subject: "the layer",
                digest: self.descriptor.digest,
                limit: self.descriptor.size,
            });
        }
        // A registry that does not resume sends all of it again.
        let mut skip = self.received - start;
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let mut chunk = chunk.map_err(|source| endpoint.fault(source))?;
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
            if chunk.is_empty() {
                continue;
            }
            let count = chunk.len() as u64;
            if self.sink.send(chunk).await.is_err() {
                return Ok(());
            }
            self.received += count;
            (self.on_bytes)(self.received);
        }
        Ok(())
    }
}

/// Where in the blob an answer begins (RFC 9110, 14.4): `bytes 100-199/200` at 100, a whole answer at 0.
fn first_byte(response: &Response) -> u64 {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return 0;
    }
    let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let start = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
    start.and_then(|start| start.parse().ok()).unwrap_or(u64::MAX)
}
