//! Beginning a sandbox with what another was: its definition, its image, its disk, its memory.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use microsandbox_archive::clone_file;
use microsandbox_image::{Digest, Image as StoredImage, ImageHold, Progress, Reference, ext4};
use microsandbox_runtime::{FreshRoot, SandboxDir, StartingPoint, VmmKind};

use super::{CHECKPOINT, UPPER};
use crate::{
    MicrosandboxError, MicrosandboxResult, RootfsSource, SandboxConfig, Snapshot, create,
    home::Home, image, thread::on_thread,
};

/// What a new sandbox begins with.
#[derive(Debug)]
pub(crate) enum Origin {
    /// Its image, and an empty disk.
    Image,
    /// What another sandbox was.
    Other(Box<Other>),
}

/// What is left of another sandbox, or was saved of it.
#[derive(Debug, Clone)]
pub(crate) struct Other {
    /// What errors call it.
    pub(super) name: String,
    /// The other's definition.
    pub(super) definition: SandboxConfig,
    /// Its disk.
    pub(super) upper: PathBuf,
    /// Its saved machine, where it ran.
    pub(super) saved: Option<PathBuf>,
}

impl Origin {
    /// Finds and checks, for a start on `vmm` or for none, the snapshot that the definition names, if it names one, and takes from it
    /// what the definition leaves open.
    pub(crate) async fn find(
        home: &Home,
        vmm: Option<VmmKind>,
        config: &mut SandboxConfig,
    ) -> MicrosandboxResult<Self> {
        let Some(name) = &config.snapshot else { return Ok(Self::Image) };
        let snapshot = Snapshot::find(home, Path::new(name))?;
        if snapshot.is_full() && vmm.is_none() {
            let message = "a machine that goes on does so at once: it cannot be just defined";
            return Err(MicrosandboxError::InvalidConfig(message.into()));
        }
        if snapshot.is_full() && vmm != Some(VmmKind::Qemu) {
            return Err(MicrosandboxError::Unsupported {
                feature: "to go on from a saved machine".into(),
                available_when: "on QEMU, which MSB_VMM=qemu selects".into(),
            });
        }
        let stored = snapshot.stored.clone();
        on_thread("check-snapshot", move || stored.check()).await?;
        let other = Other::from_snapshot(snapshot);
        other.complete(config)?;
        Ok(Self::Other(Box::new(other)))
    }

    /// The image beneath the disk, held until the catalogue pins it. Another sandbox's is found by
    /// digest, whatever its name stands for today.
    pub(crate) async fn image(
        &self,
        home: &Home,
        config: &mut SandboxConfig,
        progress: &dyn Progress,
    ) -> MicrosandboxResult<(StoredImage, ImageHold)> {
        match self {
            Self::Image => image::ensure(home, config, progress).await,
            Self::Other(other) => other.image(home, config, progress).await,
        }
    }

    /// What the machine goes on from, above `image`.
    pub(crate) fn starting_point(&self, image: &StoredImage, upper_bytes: u64) -> StartingPoint {
        match self {
            Self::Image => StartingPoint::Fresh(FreshRoot {
                files: image.extents().iter().map(|extent| extent.path.clone()).collect(),
                upper_bytes,
            }),
            Self::Other(other) => match &other.saved {
                Some(folder) => StartingPoint::OthersMachine(folder.clone()),
                None => StartingPoint::OthersDisk,
            },
        }
    }

    /// Makes the writable disk.
    pub(crate) async fn make_upper(
        self,
        dir: &SandboxDir,
        size_bytes: u64,
    ) -> MicrosandboxResult<()> {
        let path = dir.upper_path();
        match self {
            Self::Image => create::format_upper(path, size_bytes).await,
            Self::Other(other) => {
                on_thread("copy-upper", move || copy(&other.upper, &path, size_bytes)).await
            }
        }
    }
}

impl Other {
    fn from_snapshot(snapshot: Snapshot) -> Self {
        let saved = snapshot.is_full().then(|| snapshot.path().join(CHECKPOINT));
        Self {
            name: snapshot.name().to_owned(),
            upper: snapshot.path().join(UPPER),
            saved,
            definition: snapshot.definition,
        }
    }

    /// Takes what `config` leaves open. A machine that goes on is what it was, so nothing else may be
    /// wanted of it.
    pub(super) fn complete(&self, config: &mut SandboxConfig) -> MicrosandboxResult<()> {
        let invalid = |message: String| Err(MicrosandboxError::InvalidConfig(message));
        let source = &self.definition;
        config.inherit(source);
        let size_mib = |bytes: u64| u32::try_from(bytes >> 20).unwrap_or(u32::MAX);
        let own_mib = size_mib(source.upper_bytes());
        let RootfsSource::Oci(image) = &mut config.image;
        let wanted_mib = *image.upper_size_mib.get_or_insert(own_mib);
        if wanted_mib < own_mib {
            return invalid(format!(
                "a disk of {wanted_mib} MiB is too small for the snapshot's {own_mib} MiB"
            ));
        }
        if self.saved.is_none() {
            return Ok(());
        }
        (config.cpus, config.memory_mib) = (source.cpus, source.memory_mib);
        if wanted_mib != own_mib {
            return invalid("the disk of a machine that goes on cannot have another size".into());
        }
        let (own, other) = (&config, source);
        if (&own.env, &own.workdir, &own.user) != (&other.env, &other.workdir, &other.user) {
            return invalid(
                "a machine that goes on keeps its environment, working directory and user".into(),
            );
        }
        Ok(())
    }

    async fn image(
        &self,
        home: &Home,
        config: &mut SandboxConfig,
        progress: &dyn Progress,
    ) -> MicrosandboxResult<(StoredImage, ImageHold)> {
        let RootfsSource::Oci(pin) = &self.definition.image;
        let RootfsSource::Oci(source) = &mut config.image;
        let pinned = pin.reference.as_str();
        let given = std::mem::replace(&mut source.reference, pinned.into());
        let digest: Digest =
            self.definition.manifest_digest.as_deref().unwrap_or_default().parse()?;
        let is_named_otherwise = !given.is_empty() && given != pinned;
        if !is_named_otherwise && let Some(held) = image::stored(home, &digest)? {
            return Ok(held);
        }
        let reference = if is_named_otherwise {
            // It may be another name of the same image.
            given.parse()?
        } else {
            pinned.parse::<Reference>()?.with_digest(digest)
        };
        let missing = |source: MicrosandboxError| MicrosandboxError::SnapshotImageMissing {
            snapshot: self.name.clone(),
            reference: reference.to_string(),
            digest: digest.to_string(),
            source: source.into(),
        };
        let (image, hold) =
            image::ensure_as(home, &reference, config, progress).await.map_err(missing)?;
        if image.digest() != digest {
            return Err(MicrosandboxError::SnapshotIntegrity(format!(
                "snapshot image digest mismatch: manifest pinned {digest}, resolved {}",
                image.digest()
            )));
        }
        Ok((image, hold))
    }
}

/// Copies a disk, and makes it larger where it must be.
fn copy(from: &Path, to: &Path, size_bytes: u64) -> MicrosandboxResult<()> {
    let copy = || {
        let source = File::open(from)?;
        let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
        clone_file(&source, &new)?;
        Ok(source.metadata()?.len())
    };
    let copied_bytes = copy().map_err(MicrosandboxError::file("copy", from))?;
    if size_bytes > copied_bytes {
        ext4::grow(to, size_bytes)?;
    }
    Ok(())
}
