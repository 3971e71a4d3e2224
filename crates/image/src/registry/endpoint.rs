//! Endpoints: one host that has the repository, reached and authorized.
//!
//! [`Site`] is where it is said to be; the first use finds out how it is spoken to and makes it an [`Endpoint`].

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use reqwest::{Certificate, Response, StatusCode};
use tokio::sync::OnceCell;

use super::auth::{Authorization, Authorizer, RegistryAuth};
use super::settings::RegistrySettings;
use super::{DOCKER_HUB, DOCKER_HUB_HOST, challenge};
use crate::{Error, Reference};

/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Tries of a request that the host turns away for now, or breaks off.
const MAX_TRIES: u32 = 5;

/// Longest wait between tries, whatever the host asks for.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// Most redirects that are followed; more is a circle.
const MAX_REDIRECTS: usize = 10;

/// Where a repository is said to be.
#[derive(Debug)]
pub(super) struct Site {
    /// Host and port, for messages and credentials.
    host: String,
    place: Place,
    settings: RegistrySettings,
    certificates: Vec<Certificate>,
    endpoint: OnceCell<Endpoint>,
    failed: AtomicBool,
}

#[derive(Debug)]
enum Place {
    /// URL of a mirror.
    Mirror(String),
    /// The registry itself.
    Registry,
}

impl Site {
    /// The mirrors of a reference's registry, and the registry.
    pub(super) fn all(
        reference: &Reference,
        settings: &RegistrySettings,
    ) -> Result<Vec<Self>, Error> {
        // Without a provider no client can be built; one that the program has chosen is left alone.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = read_certificates(settings)?;
        let site = |host: &str, place, auth: RegistryAuth| Self {
            host: host.to_owned(),
            place,
            settings: RegistrySettings { auth, ..settings.clone() },
            certificates: certificates.clone(),
            endpoint: OnceCell::new(),
            failed: AtomicBool::new(false),
        };
        let registry = reference.registry();
        let of_registry = settings.mirrors.iter().filter(|mirror| mirror.registry == registry);
        let mut sites: Vec<Self> = of_registry
            .map(|mirror| {
                let host = mirror.url.split('/').nth(2).unwrap_or_default();
                let auth = match settings.auth {
                    RegistryAuth::Anonymous => RegistryAuth::Anonymous,
                    _ => RegistryAuth::DockerConfig,
                };
                site(host, Place::Mirror(mirror.url.clone()), auth)
            })
            .collect();
        sites.push(site(registry, Place::Registry, settings.auth.clone()));
        Ok(sites)
    }

    /// Whether it is worth asking: a mirror that failed is not, for the rest of this pull.
    pub(super) fn is_usable(&self) -> bool {
        matches!(self.place, Place::Registry) || !self.failed.load(Ordering::Relaxed)
    }

    /// Takes note of what went wrong here; a mirror may lack an image and be fine.
    pub(super) fn note_fault(&self, error: &Error) {
        tracing::debug!(host = self.host, %error, "a request failed");
        if !matches!(error, Error::ImageNotFound { .. }) {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    pub(super) async fn endpoint(&self, reference: &Reference) -> Result<&Endpoint, Error> {
        self.endpoint.get_or_try_init(|| self.connect(reference)).await
    }

    async fn connect(&self, reference: &Reference) -> Result<Endpoint, Error> {
        let repository = reference.repository();
        let is_insecure = self.settings.insecure_hosts.contains(&self.host);
        let is_local = reference.is_loopback() && matches!(self.place, Place::Registry);
        let http = self.http_client(is_insecure, is_local)?;
        let (url, is_plain) = match &self.place {
            Place::Mirror(url) => (url.clone(), url.starts_with("http://")),
            Place::Registry if is_insecure || is_local => {
                let plain = format!("http://{}", self.host);
                match speaks_plain(&http, &plain).await {
                    true => (plain, true),
                    false => (format!("https://{}", self.host), false),
                }
            }
            Place::Registry if self.host == DOCKER_HUB => {
                (format!("https://{DOCKER_HUB_HOST}"), false)
            }
            Place::Registry => (format!("https://{}", self.host), false),
        };
        let host_end = url.find("://").map_or(0, |at| at + 3);
        let (origin, prefix) = match url[host_end..].split_once('/') {
            Some((host, prefix)) => (format!("{}{host}", &url[..host_end]), format!("{prefix}/")),
            None => (url, String::new()),
        };
        Ok(Endpoint {
            http,
            host: self.host.clone(),
            base: format!("{origin}/v2/{prefix}{repository}"),
            stall_timeout: self.settings.stall_timeout,
            authorizer: Authorizer::new(
                &self.host,
                repository,
                self.settings.auth.clone(),
                is_plain,
            ),
        })
    }

    fn http_client(&self, is_insecure: bool, is_local: bool) -> Result<reqwest::Client, Error> {
        let builder = || {
            let builder = reqwest::Client::builder()
                .user_agent(concat!("microsandbox/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(self.settings.stall_timeout)
                .redirect(reqwest::redirect::Policy::limited(MAX_REDIRECTS))
                .tls_danger_accept_invalid_certs(is_insecure);
            // A proxy's loopback is another machine.
            if is_local { builder.no_proxy() } else { builder }
        };
        let merged = builder().tls_certs_merge(self.certificates.clone()).build();
        // A machine without certificates of authorities can still talk to those it was given, and to its own registry;
        // without encryption none is needed, and whatever is redirected to with encryption is refused.
        let is_plain = matches!(&self.place, Place::Mirror(url) if url.starts_with("http://"));
        let is_enough = is_insecure || is_local || is_plain || !self.certificates.is_empty();
        let built = merged.or_else(|fault| match is_enough {
            true => builder().tls_certs_only(self.certificates.clone()).build(),
            false => Err(fault),
        });
        built.map_err(|source| Error::SetUpTls {
            registry: self.host.clone(),
            source: source.into(),
        })
    }
}

/// Whether a host that may do without encryption does: one with encryption answers 400, or nothing of sense.
async fn speaks_plain(http: &reqwest::Client, url: &str) -> bool {
    let answer = http.get(format!("{url}/v2/")).send().await;
    answer.is_ok_and(|response| response.status() != StatusCode::BAD_REQUEST)
}

fn read_certificates(settings: &RegistrySettings) -> Result<Vec<Certificate>, Error> {
    let mut certificates = Vec::new();
    for path in &settings.ca_files {
        let fault = |source| Error::ReadCertificates { path: path.clone(), source };
        let pem = fs::read(path).map_err(|source| fault(source.into()))?;
        let found = Certificate::from_pem_bundle(&pem).map_err(|source| fault(source.into()))?;
        if found.is_empty() {
            return Err(fault("it has no certificate in PEM form".into()));
        }
        certificates.extend(found);
    }
    Ok(certificates)
}

/// One host, ready to be asked.
#[derive(Debug)]
pub(super) struct Endpoint {
    http: reqwest::Client,
    host: String,
    /// `https://host/v2/repository`.
    base: String,
    stall_timeout: Duration,
    authorizer: Authorizer,
}

impl Endpoint {
    /// A successful answer: authorizes when asked to, and tries again when told to come later or broken off.
    pub(super) async fn get(
        &self,
        path: &str,
        headers: &HeaderMap,
        reference: &Reference,
    ) -> Result<Response, Error> {
        let url = format!("{}/{path}", self.base);
        let mut refused: Option<Authorization> = None;
        let mut tries = 0;
        loop {
            tries += 1;
            let authorization = self.authorizer.current().await;
            let mut request = self.http.get(&url).headers(headers.clone());
            if let Some(authorization) = &authorization {
                request = request.header(reqwest::header::AUTHORIZATION, authorization.header());
            }
            let response = match request.send().await {
                Ok(response) => response,
                Err(source) if tries < MAX_TRIES && is_broken_off(&source) => {
                    tracing::debug!(url, %source, "trying again");
                    tokio::time::sleep(backoff(tries)).await;
                    continue;
                }
                Err(source) => return Err(self.fault(source)),
            };
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
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(self.authorizer.denied());
                }
                StatusCode::NOT_FOUND if path.starts_with("manifests/") => {
                    return Err(Error::ImageNotFound { reference: reference.clone().into() });
                }
                status if tries < MAX_TRIES && is_for_now(status) => {
                    let wait = retry_after(response.headers(), SystemTime::now());
                    let wait = wait.unwrap_or_else(|| backoff(tries)).min(MAX_BACKOFF);
                    tracing::debug!(url, %status, ?wait, "the registry asks to come later");
                    tokio::time::sleep(wait).await;
                }
                status => {
                    let (registry, status) = (self.host.clone(), status.as_u16());
                    return Err(Error::HttpStatus { registry, status, url });
                }
            }
        }
    }

    pub(super) fn odd(&self, reason: &'static str) -> Error {
        Error::UnexpectedAnswer { registry: self.host.clone(), reason }
    }

    pub(super) fn fault(&self, source: reqwest::Error) -> Error {
        if source.is_timeout() && !source.is_connect() {
            return Error::Stalled { registry: self.host.clone(), after: self.stall_timeout };
        }
        http_fault(&self.host, source)
    }
}

/// An error without the URL, which may carry a signature that grants access.
pub(super) fn http_fault(registry: &str, source: reqwest::Error) -> Error {
    let registry = registry.to_owned();
    if source.is_redirect() {
        let reason = "it redirects in circles, or to nowhere";
        return Error::UnexpectedAnswer { registry, reason };
    }
    Error::Http { registry, source: source.without_url().into() }
}

/// Whether the connection failed, so that another one may do better.
pub(super) fn is_cut(error: &Error) -> bool {
    matches!(error, Error::Http { .. } | Error::Stalled { .. })
}

/// A connection that came about and then broke, as busy servers and restarts make it happen.
fn is_broken_off(source: &reqwest::Error) -> bool {
    source.is_request() && !source.is_connect() && !source.is_timeout() && !source.is_redirect()
}

fn is_for_now(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// 0.5 s, doubled with each try.
pub(super) fn backoff(tries: u32) -> Duration {
    Duration::from_millis(250 << tries.min(8))
}

/// How long the host asks to wait: seconds, or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(now).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_may_ask_for_seconds_or_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (text, seconds) in [
            ("7", Some(7)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sun, 06 Nov 1994 08:49:27 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            let wait = retry_after(&headers, now).map(|wait| wait.as_secs());
            assert_eq!(wait, seconds, "{text}");
        }
    }
}
