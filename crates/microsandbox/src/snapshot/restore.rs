//! Beginning a sandbox from a snapshot: its definition, its image, its disk.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use microsandbox_image::{Digest, Image as StoredImage, ImageHold, Progress, Reference, ext4};
use microsandbox_runtime::SandboxDir;
use microsandbox_snapshot::clone_file;

use super::UPPER;
use crate::{
    MicrosandboxError, MicrosandboxResult, RootfsSource, SandboxConfig, Snapshot, create,
    home::Home, image, thread::on_thread,
};

/// What a new sandbox begins with: nothing but its image, or a snapshot.
#[derive(Debug)]
pub(crate) struct Origin {
    snapshot: Option<Snapshot>,
}

impl Origin {
    /// Finds and checks the snapshot that the definition names, if it names one, and takes from it
    /// what the definition leaves open.
    pub(crate) async fn find(home: &Home, config: &mut SandboxConfig) -> MicrosandboxResult<Self> {
        let Some(name) = &config.snapshot else { return Ok(Self { snapshot: None }) };
        let snapshot = Snapshot::find(home, Path::new(name))?;
        let stored = snapshot.stored.clone();
        on_thread("check-snapshot", move || stored.check()).await?;
        config.inherit(&snapshot.definition);
        let RootfsSource::Oci(source) = &mut config.image;
        let wanted_mib = source.upper_size_mib;
        let own_mib = u32::try_from(snapshot.size_bytes() >> 20).unwrap_or(u32::MAX);
        if let Some(wanted_mib) = wanted_mib.filter(|wanted| *wanted < own_mib) {
            return Err(MicrosandboxError::InvalidConfig(format!(
                "a disk of {wanted_mib} MiB is too small for the snapshot's {own_mib} MiB"
            )));
        }
        source.upper_size_mib = wanted_mib.or(Some(own_mib));
        Ok(Self { snapshot: Some(snapshot) })
    }

    /// The image beneath the disk, held until the catalogue pins it. A snapshot's is found by digest,
    /// whatever its name stands for today.
    pub(crate) async fn image(
        &self,
        home: &Home,
        config: &mut SandboxConfig,
        progress: &dyn Progress,
    ) -> MicrosandboxResult<(StoredImage, ImageHold)> {
        let Some(snapshot) = &self.snapshot else {
            return image::ensure(home, config, progress).await;
        };
        let RootfsSource::Oci(source) = &mut config.image;
        let pinned = snapshot.image_reference();
        let given = std::mem::replace(&mut source.reference, pinned.into());
        let digest: Digest = snapshot.manifest_digest().parse()?;
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
            snapshot: snapshot.name().to_owned(),
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

    /// Whether the writable disk is one that nobody has used.
    pub(crate) const fn is_fresh(&self) -> bool {
        self.snapshot.is_none()
    }

    /// Makes the writable disk.
    pub(crate) async fn make_upper(
        self,
        dir: &SandboxDir,
        size_bytes: u64,
    ) -> MicrosandboxResult<()> {
        let path = dir.upper_path();
        let Some(snapshot) = self.snapshot else {
            return create::format_upper(path, size_bytes).await;
        };
        let copy = move || {
            let from = snapshot.path().join(UPPER);
            let failed = MicrosandboxError::file("copy", &from);
            let copy = || {
                let from = std::fs::File::open(&from)?;
                let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
                clone_file(&from, &to)
            };
            copy().map_err(failed)?;
            if size_bytes > snapshot.size_bytes() {
                ext4::grow(&path, size_bytes)?;
            }
            Ok::<_, MicrosandboxError>(())
        };
        on_thread("copy-upper", copy).await
    }
}
