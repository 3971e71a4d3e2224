//! Image configuration: how the image wants to be run.
//!
//! Read from the OCI (or Docker) configuration blob. Nothing here is acted upon: the one who runs the image does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{DiffId, Digest, Error, Platform};

/// Defaults that an image's author chose for running it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageConfig {
    /// Architecture the programs were built for, as the OCI specification spells it.
    pub architecture: String,
    /// Operating system, `linux` for everything that boots here.
    pub os: String,
    /// Variant of the architecture.
    pub variant: Option<String>,
    /// When the image was made, RFC 3339, as its author wrote it.
    pub created: Option<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Command, or default arguments when there is an entrypoint.
    pub cmd: Vec<String>,
    /// Program that every run starts with.
    pub entrypoint: Vec<String>,
    /// Directory to start in; absent or empty means `/`.
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; absent means root.
    pub user: Option<String>,
    /// Ports such as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Directories meant to hold data.
    pub volumes: Vec<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Signal that asks the program to end, `SIGTERM` when absent.
    pub stop_signal: Option<String>,
}

impl ImageConfig {
    /// Reads a configuration blob and the diff ids of the image's layers, lowest first.
    ///
    /// # Errors
    /// [`Error::ParseConfig`] when it is not a configuration of layered root file system.
    pub(crate) fn parse(bytes: &[u8]) -> Result<(Self, Vec<DiffId>), Error> {
        let digest = Digest::of(bytes);
        let blob: ConfigBlob = serde_json::from_slice(bytes)
            .map_err(|source| Error::ParseConfig { digest, source: source.into() })?;
        let run = blob.config.unwrap_or_default();
        let config = Self {
            architecture: blob.architecture.unwrap_or_default(),
            os: blob.os.unwrap_or_default(),
            variant: blob.variant.filter(|variant| !variant.is_empty()),
            created: blob.created,
            env: run.env.unwrap_or_default(),
            cmd: run.cmd.unwrap_or_default(),
            entrypoint: run.entrypoint.unwrap_or_default(),
            working_dir: run.working_dir.filter(|dir| !dir.is_empty()),
            user: run.user.filter(|user| !user.is_empty()),
            exposed_ports: keys(run.exposed_ports),
            volumes: keys(run.volumes),
            labels: run.labels.unwrap_or_default(),
            stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        };
        Ok((config, blob.rootfs.diff_ids))
    }

    /// The configuration blob of an image of these layers. Nothing in it depends on when it is made.
    pub(crate) fn encode(&self, diff_ids: &[DiffId]) -> Vec<u8> {
        let objects = |keys: &[String]| -> BTreeMap<String, serde_json::Value> {
            keys.iter().map(|key| (key.clone(), serde_json::json!({}))).collect()
        };
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let blob = ConfigBlob {
            architecture: some(&self.architecture),
            os: some(&self.os),
            variant: self.variant.clone(),
            created: self.created.clone(),
            config: Some(RunConfig {
                env: Some(self.env.clone()),
                cmd: Some(self.cmd.clone()).filter(|cmd| !cmd.is_empty()),
                entrypoint: Some(self.entrypoint.clone()).filter(|words| !words.is_empty()),
                working_dir: self.working_dir.clone(),
                user: self.user.clone(),
                exposed_ports: Some(objects(&self.exposed_ports)).filter(|ports| !ports.is_empty()),
                volumes: Some(objects(&self.volumes)).filter(|volumes| !volumes.is_empty()),
                labels: Some(self.labels.clone()).filter(|labels| !labels.is_empty()),
                stop_signal: self.stop_signal.clone(),
            }),
            rootfs: RootFs { kind: "layers".into(), diff_ids: diff_ids.to_vec() },
        };
        serde_json::to_vec(&blob).expect("text and lists of text can be written as JSON")
    }

    /// The platform the image says it is for.
    pub fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// The blob as it is written; every field that tools leave out or set to `null` is optional.
#[derive(Deserialize, Serialize)]
struct ConfigBlob {
    architecture: Option<String>,
    os: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    variant: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    config: Option<RunConfig>,
    rootfs: RootFs,
}

#[derive(Deserialize, Serialize)]
struct RootFs {
    #[serde(rename = "type", default)]
    kind: String,
    diff_ids: Vec<DiffId>,
}

#[derive(Default, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct RunConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    env: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    labels: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_signal: Option<String>,
}

fn keys(map: Option<BTreeMap<String, serde_json::Value>>) -> Vec<String> {
    map.unwrap_or_default().into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_missing_or_null_are_empty() {
        let (config, diff_ids) = ImageConfig::parse(
            br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Labels":null,"User":""},
                "rootfs":{"type":"layers","diff_ids":[]}}"#,
        )
        .unwrap();
        let expected = ImageConfig {
            architecture: "amd64".into(),
            os: "linux".into(),
            ..ImageConfig::default()
        };
        assert_eq!((config, diff_ids.len()), (expected, 0));
        assert!(ImageConfig::parse(br#"{"architecture":"amd64"}"#).is_err());
        assert!(ImageConfig::parse(b"<html>").is_err());
    }

    #[test]
    fn what_is_written_is_read_back() {
        let config = ImageConfig {
            architecture: "arm".into(),
            os: "linux".into(),
            variant: Some("v7".into()),
            env: vec!["A=1".into()],
            cmd: vec!["sh".into()],
            entrypoint: vec!["/init".into()],
            working_dir: Some("/w".into()),
            user: Some("1:2".into()),
            exposed_ports: vec!["80/tcp".into()],
            volumes: vec!["/data".into()],
            labels: BTreeMap::from([("k".into(), "v".into())]),
            stop_signal: Some("SIGINT".into()),
            ..ImageConfig::default()
        };
        for config in [config, ImageConfig::default()] {
            let diff_ids = [DiffId(Digest::of(b""))];
            let read = ImageConfig::parse(&config.encode(&diff_ids)).unwrap();
            assert_eq!(read, (config, diff_ids.to_vec()));
        }
    }

    #[test]
    fn every_field_is_read() {
        let (config, diff_ids) = ImageConfig::parse(
            br#"{"architecture":"arm","variant":"v7","os":"linux","created":"2024-01-01T00:00:00Z",
                "config":{"Env":["A=1"],"Cmd":["sh"],"Entrypoint":["/init"],"WorkingDir":"/w","User":"1:2",
                "ExposedPorts":{"80/tcp":{}},"Volumes":{"/data":{}},"Labels":{"k":"v"},"StopSignal":"SIGINT"},
                "rootfs":{"type":"layers","diff_ids":
                ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#,
        )
        .unwrap();
        assert_eq!(config.platform().to_string(), "linux/arm/v7");
        assert_eq!((config.env, config.cmd), (vec!["A=1".to_owned()], vec!["sh".to_owned()]));
        assert_eq!(config.entrypoint, ["/init"]);
        assert_eq!(
            (config.working_dir.as_deref(), config.user.as_deref()),
            (Some("/w"), Some("1:2"))
        );
        assert_eq!(
            (config.exposed_ports, config.volumes),
            (vec!["80/tcp".into()], vec!["/data".into()])
        );
        assert_eq!(config.labels["k"], "v");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
        assert_eq!(diff_ids, [DiffId(Digest::of(b""))]);
    }
}
