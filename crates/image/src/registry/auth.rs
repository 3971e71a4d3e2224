//! Authorization: credentials, and the tokens that registries give for them.

use std::fmt;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use futures_util::StreamExt;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use tokio::sync::Mutex;

use super::DOCKER_HUB;
use super::challenge::{Bearer, Challenge};
use super::endpoint::http_fault;
use crate::Error;
use crate::thread::blocking;

/// Name under which credential stores keep Docker Hub.
const DOCKER_HUB_CREDENTIALS: &str = "https://index.docker.io/v1/";

/// Largest answer of a token service; real ones have a few KiB.
const MAX_TOKEN_BYTES: usize = 256 << 10;

/// Who pulls.
#[derive(Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryAuth {
    /// Nobody in particular.
    Anonymous,
    /// A user with a password or an access token.
    Basic {
        /// User name.
        username: String,
        /// Password or access token.
        password: String,
    },
    /// A bearer token that was obtained elsewhere.
    Bearer {
        /// The token.
        token: String,
    },
    /// Whoever `docker login` has stored for the registry (`config.json` and credential helpers), else nobody.
    #[default]
    DockerConfig,
}

impl fmt::Debug for RegistryAuth {
    /// Never shows a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(..)",
            Self::Bearer { .. } => "Bearer(..)",
            Self::DockerConfig => "DockerConfig",
        })
    }
}

/// The value of an `Authorization` header.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Authorization(HeaderValue);

impl Authorization {
    pub(super) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    fn bearer(token: &str) -> Option<Self> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}")).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(..)")
    }
}

/// Answers a registry's challenges and remembers what worked.
#[derive(Debug)]
pub(super) struct Authorizer {
    registry: String,
    repository: String,
    auth: RegistryAuth,
    plain_http: bool,
    current: Mutex<Option<Authorization>>,
}

/// What is known about the user.
enum Credentials {
    Basic { username: String, password: String },
    Identity { token: String },
    None,
}

impl Authorizer {
    pub(super) fn new(
        registry: &str,
        repository: &str,
        auth: RegistryAuth,
        plain_http: bool,
    ) -> Self {
        let current = match &auth {
            RegistryAuth::Bearer { token } => Authorization::bearer(token),
            _ => None,
        };
        Self {
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            auth,
            plain_http,
            current: Mutex::new(current),
        }
    }

    /// What the next request should carry.
    pub(super) async fn current(&self) -> Option<Authorization> {
        self.current.lock().await.clone()
    }

    /// Does what the registry demands after it refused a request that carried `refused`.
    pub(super) async fn answer(
        &self,
        http: &reqwest::Client,
        challenge: Option<Challenge>,
        refused: Option<Authorization>,
    ) -> Result<Authorization, Error> {
        let mut current = self.current.lock().await;
        if let Some(newer) = current.clone().filter(|_| *current != refused) {
            // Another request has been through this while this one waited.
            return Ok(newer);
        }
        let credentials = self.credentials().await?;
        let fresh = match (challenge, credentials) {
            (Some(Challenge::Bearer(demand)), credentials) => {
                let token = self.token(http, demand, &credentials).await?;
                Authorization::bearer(&token)
            }
            (Some(Challenge::Basic), Credentials::Basic { username, password }) => {
                // The client knows how to encode it; the request is only built, never sent.
                let request = http
                    .get(format!("https://{}/", self.registry))
                    .basic_auth(username, Some(password));
                let request = request.build().map_err(|source| self.fault(source))?;
                request.headers().get(reqwest::header::AUTHORIZATION).cloned().map(Authorization)
            }
            _ => None,
        };
        let fresh = fresh.ok_or_else(|| self.denied())?;
        *current = Some(fresh.clone());
        Ok(fresh)
    }

    /// Asks the token service.
    async fn token(
        &self,
        http: &reqwest::Client,
        demand: Bearer,
        credentials: &Credentials,
    ) -> Result<String, Error> {
        let scope = demand.scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let mut url = reqwest::Url::parse(&demand.realm)
            .map_err(|_| self.odd("the token realm is no URL"))?;
        let acceptable = url.scheme() == "https" || (self.plain_http && url.scheme() == "http");
        if !acceptable {
            // Credentials that went to the registry encrypted must not leave this host in the clear.
            return Err(self.odd("the token realm is not encrypted"));
        }
        let mut fields = vec![("scope", scope)];
        fields.extend(demand.service.map(|service| ("service", service)));
        let request = match credentials {
            Credentials::Identity { token } => {
                fields.push(("grant_type", "refresh_token".into()));
                fields.push(("client_id", "microsandbox".into()));
                fields.push(("refresh_token", token.clone()));
                let mut form = url.clone();
                form.query_pairs_mut().clear().extend_pairs(&fields);
                http.post(url)
                    .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            Credentials::Basic { username, password } => {
                url.query_pairs_mut().extend_pairs(&fields);
                http.get(url).basic_auth(username, Some(password))
            }
            Credentials::None => {
                url.query_pairs_mut().extend_pairs(&fields);
                http.get(url)
            }
        };
        let response = request.send().await.map_err(|source| self.fault(source))?;
        if !response.status().is_success() {
            return Err(self.denied());
        }
        let mut bytes = Vec::new();
        let mut stream = response.bytes_stream();
        while let Some(chunk) = stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|source| self.fault(source))?);
            if bytes.len() > MAX_TOKEN_BYTES {
                return Err(self.odd("the token service's answer is too long"));
            }
        }
        let answer: TokenAnswer = serde_json::from_slice(&bytes)
            .map_err(|_| self.odd("the token service's answer is no token"))?;
        answer
            .token
            .or(answer.access_token)
            .ok_or_else(|| self.odd("the token service's answer has no token"))
    }

    async fn credentials(&self) -> Result<Credentials, Error> {
        match &self.auth {
            RegistryAuth::Basic { username, password } => {
                Ok(Credentials::Basic { username: username.clone(), password: password.clone() })
            }
            RegistryAuth::Anonymous | RegistryAuth::Bearer { .. } => Ok(Credentials::None),
            RegistryAuth::DockerConfig => {
                let registry = self.registry.clone();
                // A credential helper is a program that is waited for.
                blocking("read-credentials", move || stored_credentials(&registry)).await
            }
        }
    }

    pub(super) fn denied(&self) -> Error {
        Error::Denied { registry: self.registry.clone(), repository: self.repository.clone() }
    }

    fn odd(&self, reason: &'static str) -> Error {
        Error::UnexpectedAnswer { registry: self.registry.clone(), reason }
    }

    fn fault(&self, source: reqwest::Error) -> Error {
        http_fault(&self.registry, source)
    }
}

/// The answer of a token service; old ones say `token`, OAuth 2 says `access_token`.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
}

fn stored_credentials(registry: &str) -> Result<Credentials, Error> {
    let server = if registry == DOCKER_HUB { DOCKER_HUB_CREDENTIALS } else { registry };
    match docker_credential::get_credential(server) {
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(Credentials::Basic { username, password })
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Credentials::Identity { token }),
        // A helper fails the same way whether it has nothing for this registry or is broken.
        Err(
            CredentialRetrievalError::ConfigNotFound
            | CredentialRetrievalError::ConfigReadError
            | CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::HelperFailure { .. },
        ) => Ok(Credentials::None),
        Err(source) => {
            Err(Error::Credentials { registry: registry.to_owned(), source: source.into() })
        }
    }
}
