//! References: the names people give images, read the way Docker reads them.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Digest, Error};

/// Registry meant when a reference names none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Repository prefix of Docker Hub's official images.
const OFFICIAL_PREFIX: &str = "library/";

/// Tag meant when a reference has neither tag nor digest.
const DEFAULT_TAG: &str = "latest";

/// Longest repository name; the limit of the distribution specification.
const MAX_NAME_LEN: usize = 255;

/// Longest tag; the limit of the distribution specification.
const MAX_TAG_LEN: usize = 128;

/// A fully resolved image name: registry, repository, and a tag or a digest (or both).
///
/// ```
/// # use microsandbox_image::Reference;
/// let reference: Reference = "debian".parse()?;
/// assert_eq!(reference.to_string(), "docker.io/library/debian:latest");
/// assert_eq!(reference.familiar(), "debian:latest");
/// # Ok::<(), microsandbox_image::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Host and optional port of the registry, `docker.io` for Docker Hub.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Path of the repository on its registry, `library/debian` for `debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; absent only when a digest was given alone.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the content, if one was given.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The same repository, pinned to `digest` instead of a tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }

    /// The same name without the digest that pins it.
    pub(crate) fn without_digest(&self) -> Self {
        Self { digest: None, ..self.clone() }
    }

    /// Shortest text that means this image: without the parts Docker implies, tag kept.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let Some(short) = full.strip_prefix("docker.io/") else { return full };
        if split_registry(short).0.is_some() {
            // `docker.io/a.b/c`: without its registry, `a.b` would be taken for one.
            return full;
        }
        match short.strip_prefix(OFFICIAL_PREFIX) {
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => short.to_owned(),
        }
    }

    /// Whether the registry runs on this host, where plain HTTP crosses no network.
    pub fn is_loopback(&self) -> bool {
        let host = match self.registry.strip_prefix('[') {
            Some(bracketed) => bracketed.split(']').next().unwrap_or_default(),
            None => self.registry.split(':').next().unwrap_or_default(),
        };
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// What a registry's manifest URL ends with: the digest if there is one, else the tag.
    pub(crate) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fault = |reason| Error::ParseReference { text: text.to_owned(), reason };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => {
                (name, Some(digest.parse().map_err(|_| fault("the digest is not sha256:<hex>"))?))
            }
            None => (text, None),
        };
        let (registry, path) = split_registry(name);
        let (repository, tag) = match path.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
            _ => (path, None),
        };
        if repository.is_empty() {
            return Err(fault("it has no name"));
        }
        if registry.is_some_and(|host| !is_registry(host)) {
            return Err(fault("the registry is not a host name with an optional port"));
        }
        let registry = match registry {
            None | Some("index.docker.io") => DEFAULT_REGISTRY,
            Some(host) => host,
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("{OFFICIAL_PREFIX}{repository}")
        } else {
            repository.to_owned()
        };
        if repository.len() > MAX_NAME_LEN {
            return Err(fault("the name is longer than 255 characters"));
        }
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(fault("the name must be lower case"));
        }
        if !repository.split('/').all(is_path_component) {
            return Err(fault("a name is made of letters, digits, and single separators . _ - /"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(fault(
                "a tag is 1 to 128 letters, digits, _ . -, not starting with . or -",
            ));
        }
        let tag = match (tag, digest) {
            (None, None) => Some(DEFAULT_TAG.to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The part before the first slash is a registry if it looks like a host: Docker's own rule.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((host, path))
            if host.contains(['.', ':'])
                || host == "localhost"
                || host.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (Some(host), path)
        }
        _ => (None, name),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.parse::<std::net::Ipv6Addr>().is_err() {
                return false;
            }
            ("v6", port.strip_prefix(':').or_else(|| (!port.is_empty()).then_some("")))
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(|port| port.parse::<u16>().is_ok())
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or a run of `-`.
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    bytes.split(|byte| alphanumeric(*byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=MAX_TAG_LEN).contains(&tag.len())
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Found by fuzzing.
    #[test]
    fn short_form_of_a_repository_that_looks_like_a_registry_keeps_its_registry() {
        for text in ["docker.io/a.b/c:latest", "docker.io/localhost/c:1"] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.familiar(), text);
            assert_eq!(reference.familiar().parse::<Reference>().unwrap(), reference);
        }
    }

    #[test]
    fn references_resolve_as_docker_resolves_them() {
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian:latest", "debian:latest"),
            ("debian:py", "docker.io/library/debian:py", "debian:py"),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest", "debian:latest"),
            ("index.docker.io/a/b:1", "docker.io/a/b:1", "a/b:1"),
            ("127.0.0.1:5000/debian:py", "127.0.0.1:5000/debian:py", "127.0.0.1:5000/debian:py"),
            ("localhost/a", "localhost/a:latest", "localhost/a:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            (
                "ghcr.io/a/b__c/d---e.f",
                "ghcr.io/a/b__c/d---e.f:latest",
                "ghcr.io/a/b__c/d---e.f:latest",
            ),
            ("HOST/a", "HOST/a:latest", "HOST/a:latest"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(canonical.parse::<Reference>().unwrap(), reference, "{text}");
        }
        let pinned: Reference = format!("x@sha256:{HEX}").parse().unwrap();
        assert_eq!(pinned.to_string(), format!("docker.io/library/x@sha256:{HEX}"));
        assert_eq!(pinned.tag(), None);
        let both: Reference = format!("x:1@sha256:{HEX}").parse().unwrap();
        assert_eq!((both.tag(), both.selector()), (Some("1"), format!("sha256:{HEX}")));
    }

    #[test]
    fn text_that_names_no_image_is_refused() {
        for text in [
            "",
            ":tag",
            "/a",
            "a/",
            "a//b",
            "Debian",
            "a:",
            "a:-x",
            "a:b c",
            "../a",
            "a/../b",
            "a@sha256:12",
            "a@",
            "ex ample.com/a",
            "-x.com/a",
            "host:port/a",
            "host:99999/a",
            "a___b",
            "_a",
            "a.",
            "a..b",
            "[::zz]:1/a",
            "é",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
        assert!(format!("a:{}", "t".repeat(129)).parse::<Reference>().is_err());
        assert!("a".repeat(256).parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_is_recognised_with_and_without_a_port() {
        for (text, loopback) in [
            ("localhost:5000/a", true),
            ("127.8.0.1/a", true),
            ("[::1]:5000/a", true),
            ("debian", false),
            ("10.0.0.1:5000/a", false),
            ("localhost.evil.example/a", false),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().is_loopback(), loopback, "{text}");
        }
    }
}
