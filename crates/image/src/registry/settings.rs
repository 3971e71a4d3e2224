//! Settings: which hosts are asked, how they are trusted, and who asks.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::RegistryAuth;
use crate::Error;

/// How registries are reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct RegistrySettings {
    /// Who pulls. Mirrors see stored credentials alone, never those given here.
    pub auth: RegistryAuth,
    /// Registries (`host` or `host:port`, as in the reference) that need neither encryption nor a valid certificate.
    /// Those on this host need no encryption.
    pub insecure_hosts: Vec<String>,
    /// Files with certificates (PEM) of authorities to trust besides the system's.
    pub ca_files: Vec<PathBuf>,
    /// Hosts to ask before a registry, in order.
    pub mirrors: Vec<Mirror>,
    /// How long a registry may send nothing. 30 s unless set: slow storage behind a registry is slower than networks.
    pub stall_timeout: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            auth: RegistryAuth::default(),
            insecure_hosts: Vec::new(),
            ca_files: Vec::new(),
            mirrors: Vec::new(),
            stall_timeout: Duration::from_secs(30),
        }
    }
}

/// A host that has a registry's images. Written `REGISTRY=URL`: `docker.io=https://mirror.example/hub`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Registry it stands in for, as in the reference.
    pub registry: String,
    /// `http://` or `https://`, host, and what goes between `/v2/` and the repository, if anything.
    pub url: String,
}

impl FromStr for Mirror {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let fault = || Error::ParseMirror { text: text.to_owned() };
        let (registry, url) = text.split_once('=').ok_or_else(fault)?;
        let parsed = reqwest::Url::parse(url).map_err(|_| fault())?;
        let sound = matches!(parsed.scheme(), "http" | "https")
            && parsed.has_host()
            && parsed.query().is_none()
            && parsed.fragment().is_none()
            && parsed.username().is_empty();
        if registry.is_empty() || !sound {
            return Err(fault());
        }
        Ok(Self { registry: registry.to_owned(), url: url.trim_end_matches('/').to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_a_registry_and_a_url() {
        for (text, expected) in [
            ("docker.io=https://a.example", Some(("docker.io", "https://a.example"))),
            ("docker.io=http://a:5000/hub/", Some(("docker.io", "http://a:5000/hub"))),
            ("docker.io", None),
            ("=https://a.example", None),
            ("docker.io=a.example", None),
            ("docker.io=ftp://a.example", None),
            ("docker.io=https://user@a.example", None),
            ("docker.io=https://a.example/?x", None),
        ] {
            let mirror = text.parse::<Mirror>().ok();
            let parts = mirror.as_ref().map(|mirror| (&*mirror.registry, &*mirror.url));
            assert_eq!(parts, expected, "{text}");
        }
    }
}
