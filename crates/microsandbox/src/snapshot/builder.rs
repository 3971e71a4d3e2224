//! Describing a snapshot that is to be taken.

use std::{collections::BTreeMap, path::PathBuf};

use crate::{MicrosandboxError, MicrosandboxResult, Snapshot, names};

/// A snapshot that is to be taken. [`SnapshotBuilder`] is a thin way to write one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotConfig {
    /// Its name.
    pub name: String,
    /// Name of the sandbox it is taken of.
    pub sandbox: String,
    /// Directory it is put into, under its name; none: the home.
    pub dest_dir: Option<PathBuf>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Take memory, processors and devices of the running machine, too.
    pub full: bool,
    /// Replace a snapshot that has the name.
    pub force: bool,
}

impl SnapshotConfig {
    /// Says what is wrong with the description, if anything is. Does no I/O.
    ///
    /// # Errors
    /// [`MicrosandboxError::InvalidConfig`].
    pub fn validate(&self) -> MicrosandboxResult<()> {
        if self.sandbox.is_empty() {
            let message = "a snapshot needs a sandbox to be taken of".into();
            return Err(MicrosandboxError::InvalidConfig(message));
        }
        names::validate_labels(&self.labels)
    }
}

/// Builds a snapshot. Every setter replaces what an earlier call of it set, unless it says it adds.
#[derive(Debug, Clone)]
#[must_use]
pub struct SnapshotBuilder {
    config: SnapshotConfig,
}

impl SnapshotBuilder {
    /// A snapshot of that name, of no sandbox yet.
    pub fn new(name: impl Into<String>) -> Self {
        let config = SnapshotConfig {
            name: name.into(),
            sandbox: String::new(),
            dest_dir: None,
            labels: BTreeMap::new(),
            full: false,
            force: false,
        };
        Self { config }
    }

    /// The sandbox it is taken of.
    pub fn from_sandbox(mut self, name: impl Into<String>) -> Self {
        self.config.sandbox = name.into();
        self
    }

    /// Puts it into a directory of the caller's, under its name, and not into the home. Such a
    /// snapshot is opened by path, and does not keep its image in the store.
    pub fn dest_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.config.dest_dir = Some(path.into());
        self
    }

    /// Takes the whole machine while it runs: memory, processors, devices and disk of one moment. It
    /// stands still meanwhile. What it was doing goes on where the snapshot is restored; commands of
    /// its clients are not, detached jobs are.
    pub fn full(mut self) -> Self {
        self.config.full = true;
        self
    }

    /// Adds a label.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    /// Replaces a snapshot that has the name.
    pub fn force(mut self) -> Self {
        self.config.force = true;
        self
    }

    /// The description, checked.
    ///
    /// # Errors
    /// [`MicrosandboxError::InvalidConfig`].
    pub fn build(self) -> MicrosandboxResult<SnapshotConfig> {
        self.config.validate()?;
        Ok(self.config)
    }

    /// Takes it.
    ///
    /// # Errors
    /// As [`Snapshot::create`].
    pub async fn create(self) -> MicrosandboxResult<Snapshot> {
        Snapshot::create(self.build()?).await
    }
}
