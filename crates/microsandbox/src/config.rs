//! The definition of a sandbox: plain data, stored in the catalogue as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use microsandbox_image::ImageConfig;
use serde::{Deserialize, Serialize};

use crate::{MicrosandboxError, MicrosandboxResult, names};

/// Everything that defines a sandbox. [`crate::SandboxBuilder`] is a thin way to write one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SandboxConfig {
    /// Unique name, see [`crate::validate_sandbox_name`].
    pub name: String,
    /// Where the root file system comes from.
    pub image: RootfsSource,
    /// Snapshot it begins with: name, id or path.
    pub snapshot: Option<String>,
    /// Virtual processors, at least 1.
    pub cpus: u8,
    /// Memory of the guest, MiB, at least 64.
    pub memory_mib: u32,
    /// Environment of every command, over the image's.
    pub env: Vec<(String, String)>,
    /// Working directory of every command; none: the image's, else `/`.
    pub workdir: Option<String>,
    /// User of every command as `name`, `uid`, `user:group`; none: the image's, else root.
    pub user: Option<String>,
    /// Shell of [`crate::Sandbox::shell`]; none: `/bin/sh`.
    pub shell: Option<String>,
    /// Host name; none: derived from the name.
    pub hostname: Option<String>,
    /// Program that the default command begins with; none: the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments of the default command; none: the image's.
    pub cmd: Option<Vec<String>>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// When to look for the image on its registry.
    pub pull_policy: PullPolicy,
    /// Remove the sandbox when its run ends.
    pub ephemeral: bool,
    /// What its machine begins as; none: as `MSB_BOOT` says, else from a template.
    pub boot: Option<BootMode>,
    /// When it ends by itself.
    pub policy: SandboxPolicy,
    /// Digest of the manifest the sandbox was made from; set when it is created.
    pub manifest_digest: Option<String>,
    /// Take the name from a sandbox that has it.
    #[serde(skip)]
    pub replace_existing: bool,
    /// Time that one gets to end in order.
    #[serde(skip)]
    pub replace_with_timeout: Duration,
}

/// Default time for an orderly end.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the writable disk where the image source says none; sparse, so that it costs what is
/// written.
const DEFAULT_UPPER_MIB: u32 = 4096;

/// Least memory: below it the kernel, the agent and a shell do not fit.
const MIN_MEMORY_MIB: u32 = 64;

impl Default for SandboxConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            image: RootfsSource::Oci(OciRootfsSource::default()),
            snapshot: None,
            cpus: 1,
            memory_mib: 512,
            env: Vec::new(),
            workdir: None,
            user: None,
            shell: None,
            hostname: None,
            entrypoint: None,
            cmd: None,
            labels: BTreeMap::new(),
            pull_policy: PullPolicy::default(),
            ephemeral: false,
            boot: None,
            policy: SandboxPolicy::default(),
            manifest_digest: None,
            replace_existing: false,
            replace_with_timeout: STOP_TIMEOUT,
        }
    }
}

impl SandboxConfig {
    /// Says what is wrong with the definition, if anything is. Does no I/O.
    ///
    /// # Errors
    /// [`MicrosandboxError::InvalidConfig`] naming the field and the rule.
    pub fn validate(&self) -> MicrosandboxResult<()> {
        let invalid = |message: String| Err(MicrosandboxError::InvalidConfig(message));
        names::validate_sandbox_name(&self.name)?;
        names::validate_hostname(self.hostname.as_deref())?;
        names::validate_env(&self.env)?;
        names::validate_labels(&self.labels)?;
        if self.policy.max_duration_secs == Some(0) || self.policy.idle_timeout_secs == Some(0) {
            return invalid("a limit of 0 seconds would end the sandbox before it is used".into());
        }
        if self.cpus == 0 {
            return invalid("a sandbox needs at least 1 CPU".into());
        }
        if self.memory_mib < MIN_MEMORY_MIB {
            return invalid(format!("a sandbox needs at least {MIN_MEMORY_MIB} MiB of memory"));
        }
        let RootfsSource::Oci(image) = &self.image;
        if image.reference.is_empty() && self.snapshot.is_none() {
            return invalid("a sandbox needs an image, or a snapshot to begin with".into());
        }
        Ok(())
    }

    /// Takes from the image what the definition leaves open. The one place where that is decided.
    pub fn merge_image_defaults(&mut self, image: &ImageConfig) {
        let env = image.env.iter().filter_map(|pair| pair.split_once('='));
        self.merge_env(env.map(|(key, value)| (key.to_owned(), value.to_owned())));
        self.workdir = self.workdir.take().or_else(|| image.working_dir.clone());
        self.user = self.user.take().or_else(|| image.user.clone());
        // A new entrypoint does not take the arguments meant for the image's, as Docker has it.
        if self.entrypoint.is_none() {
            self.entrypoint = Some(image.entrypoint.clone());
            self.cmd = self.cmd.take().or_else(|| Some(image.cmd.clone()));
        }
    }

    /// Takes from the sandbox that a snapshot is of what the definition leaves open.
    pub(crate) fn inherit(&mut self, source: &Self) {
        self.merge_env(source.env.iter().cloned());
        self.workdir = self.workdir.take().or_else(|| source.workdir.clone());
        self.user = self.user.take().or_else(|| source.user.clone());
        self.shell = self.shell.take().or_else(|| source.shell.clone());
        if self.entrypoint.is_none() {
            self.entrypoint = source.entrypoint.clone();
            self.cmd = self.cmd.take().or_else(|| source.cmd.clone());
        }
    }

    /// Puts variables before the own ones, which win.
    fn merge_env(&mut self, defaults: impl Iterator<Item = (String, String)>) {
        let mut env: Vec<(String, String)> =
            defaults.filter(|(key, _)| !self.env.iter().any(|(own, _)| own == key)).collect();
        env.append(&mut self.env);
        self.env = env;
    }

    /// The command a run of `args` executes: the entrypoint, then `args` or else the default ones.
    ///
    /// `None` when that is nothing at all.
    pub fn command(&self, args: Vec<String>) -> Option<(String, Vec<String>)> {
        let mut command = self.entrypoint.clone().unwrap_or_default();
        if args.is_empty() {
            command.extend(self.cmd.clone().unwrap_or_default());
        } else {
            command.extend(args);
        }
        let mut command = command.into_iter();
        Some((command.next()?, command.collect()))
    }

    /// The shell of [`Sandbox::shell`](crate::Sandbox::shell).
    pub fn shell(&self) -> &str {
        self.shell.as_deref().unwrap_or("/bin/sh")
    }

    pub(crate) fn upper_bytes(&self) -> u64 {
        let RootfsSource::Oci(image) = &self.image;
        u64::from(image.upper_size_mib.unwrap_or(DEFAULT_UPPER_MIB)) << 20
    }
}

/// When a sandbox ends by itself, in order; the default is never. Seconds, at least 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SandboxPolicy {
    /// Time from the moment it takes commands.
    pub max_duration_secs: Option<u64>,
    /// Time in which nothing is under way in it: no command, no terminal, no file transfer.
    pub idle_timeout_secs: Option<u64>,
}

/// What the machine of a sandbox begins as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BootMode {
    /// Powered off: it boots from the beginning, every time.
    Cold,
    /// A copy of a machine that has booted already, where there is one.
    #[default]
    Template,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RootfsSource {
    /// An OCI image.
    Oci(OciRootfsSource),
}

/// An OCI image and the disk above it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciRootfsSource {
    /// Name of the image, as Docker takes it.
    pub reference: String,
    /// Size of the writable disk, MiB; none: 4096. Sparse.
    pub upper_size_mib: Option<u32>,
}

/// Something that names an image.
pub trait IntoImage {
    /// The source it names.
    fn into_image(self) -> RootfsSource;
}

impl<T: Into<String>> IntoImage for T {
    fn into_image(self) -> RootfsSource {
        RootfsSource::Oci(OciRootfsSource { reference: self.into(), upper_size_mib: None })
    }
}

/// When to look for an image on its registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// Every time.
    Always,
    /// When it is not in the store.
    #[default]
    IfMissing,
    /// Not at all.
    Never,
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mebibytes(pub u32);

impl From<u32> for Mebibytes {
    fn from(mebibytes: u32) -> Self {
        Self(mebibytes)
    }
}

/// Sizes in words: `512.mib()`, `2.gib()`.
pub trait SizeExt {
    /// As many MiB.
    fn mib(self) -> Mebibytes;
    /// As many GiB.
    fn gib(self) -> Mebibytes;
}

impl SizeExt for u32 {
    fn mib(self) -> Mebibytes {
        Mebibytes(self)
    }

    fn gib(self) -> Mebibytes {
        Mebibytes(self.saturating_mul(1024))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        let mut image = ImageConfig::default();
        image.env = vec!["PATH=/bin".into(), "A=image".into()];
        image.entrypoint = vec!["/entry".into()];
        image.cmd = vec!["default".into()];
        image.working_dir = Some("/srv".into());
        image
    }

    #[test]
    fn definition_wins_over_image_and_image_over_nothing() {
        let mut config = SandboxConfig {
            env: vec![("A".into(), "own".into()), ("B".into(), "own".into())],
            user: Some("app".into()),
            ..SandboxConfig::default()
        };
        config.merge_image_defaults(&image());
        let env: Vec<_> = config.env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(env, ["PATH=/bin", "A=own", "B=own"]);
        assert_eq!(config.workdir.as_deref(), Some("/srv"));
        assert_eq!(config.user.as_deref(), Some("app"));
    }

    #[test]
    fn command_is_the_entrypoint_with_given_or_default_arguments() {
        let merged = |entrypoint: Option<Vec<String>>| {
            let mut config = SandboxConfig { entrypoint, ..SandboxConfig::default() };
            config.merge_image_defaults(&image());
            config
        };
        let check = |config: &SandboxConfig, args: &[&str], expected: Option<&[&str]>| {
            let command = config.command(args.iter().map(|arg| (*arg).to_owned()).collect());
            let command = command.map(|(program, args)| [vec![program], args].concat());
            assert_eq!(
                command.as_deref(),
                expected.map(|e| e.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()).as_deref()
            );
        };
        check(&merged(None), &[], Some(&["/entry", "default"]));
        check(&merged(None), &["x"], Some(&["/entry", "x"]));
        check(&merged(Some(vec!["/own".into()])), &[], Some(&["/own"]));
        check(&merged(Some(Vec::new())), &["x", "y"], Some(&["x", "y"]));
        check(&merged(Some(Vec::new())), &[], None);
    }
}
