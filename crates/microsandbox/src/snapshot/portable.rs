//! Snapshots as files that go to other homes and hosts, with their image or without.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read, Write},
    os::{fd::AsFd, unix::fs::DirBuilderExt},
    path::Path,
};

use microsandbox_archive::NewFile;
use microsandbox_image::{
    ArchiveSource, Digest, ImageHold, LayerCompression, Reference, SaveTarget, Silent,
};
use microsandbox_snapshot::{IfTaken, Manifest, export};

use crate::{
    MicrosandboxError, MicrosandboxResult, Snapshot, home::Home, image::SaveOptions,
    thread::on_thread,
};

/// How a snapshot is saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotSaveOptions {
    /// The image goes along, for homes that have neither it nor its registry.
    pub with_image: bool,
}

impl SnapshotSaveOptions {
    /// The same options with the image.
    #[must_use]
    pub fn with_image(mut self) -> Self {
        self.with_image = true;
        self
    }
}

/// How a snapshot is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotLoadOptions {
    /// Its name here; none: the one it was taken under.
    pub name: Option<String>,
    /// Replace a snapshot that has the name.
    pub force: bool,
}

impl SnapshotLoadOptions {
    /// The same options with another name.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The same options, replacing a snapshot that has the name.
    #[must_use]
    pub fn with_force(mut self) -> Self {
        self.force = true;
        self
    }
}

/// Names of the image's parts where it goes along.
const IMAGE_ARCHIVE: &str = "archive.tar";
const IMAGE_MANIFEST: &str = "manifest.json";

pub(super) async fn save(
    snapshot: &Snapshot,
    path: &Path,
    options: SnapshotSaveOptions,
) -> MicrosandboxResult<()> {
    let (snapshot, path, home) = (snapshot.clone(), path.to_owned(), Home::from_env()?);
    let work = move || {
        let failed = |errno: io::Error| MicrosandboxError::file("write", &path)(errno);
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = parent.unwrap_or_else(|| Path::new("."));
        let unnamed = || failed(io::ErrorKind::IsADirectory.into());
        let name = path.file_name().ok_or_else(unnamed)?;
        let opened = File::open(directory).map_err(failed)?;
        let created = NewFile::create(opened.as_fd());
        let mut file = created.map_err(|errno| failed(errno.into()))?;
        write(&home, &snapshot, file.file(), options)?;
        file.publish(name).map_err(|errno| failed(errno.into()))
    };
    on_thread("save-snapshot", work).await
}

pub(super) async fn save_to(
    snapshot: &Snapshot,
    output: impl Write + Send + 'static,
    options: SnapshotSaveOptions,
) -> MicrosandboxResult<()> {
    let (snapshot, home) = (snapshot.clone(), Home::from_env()?);
    on_thread("save-snapshot", move || write(&home, &snapshot, output, options)).await
}

fn write(
    home: &Home,
    snapshot: &Snapshot,
    output: impl Write,
    options: SnapshotSaveOptions,
) -> MicrosandboxResult<()> {
    if !options.with_image {
        return Ok(export(&snapshot.stored, None, output)?);
    }
    // A draft that is never published: it goes with this process, however that ends.
    let store = home.snapshots();
    let draft = store.draft()?;
    let image = draft.path().join("image");
    save_image(home, snapshot, &image)?;
    Ok(export(&snapshot.stored, Some(&image), output)?)
}

/// Puts an archive of the image, and its manifest as it came, into `directory`.
fn save_image(home: &Home, snapshot: &Snapshot, directory: &Path) -> MicrosandboxResult<()> {
    let failed = || MicrosandboxError::file("write", directory);
    DirBuilder::new().mode(0o700).create(directory).map_err(failed())?;
    let digest: Digest = snapshot.manifest_digest().parse()?;
    let reference: Reference = snapshot.image_reference().parse()?;
    let reference = reference.with_digest(digest);
    let store = home.images();
    let manifest = store.image(&digest)?.map(|image| image.manifest_bytes()).transpose()?;
    let missing = || microsandbox_image::Error::NotCached { reference: reference.clone().into() };
    let manifest = manifest.ok_or_else(missing)?;
    let target = SaveTarget::Path(directory.join(IMAGE_ARCHIVE));
    // What is around it compresses.
    let options = SaveOptions::default().with_compression(LayerCompression::None);
    store.save(&[reference], target, &options)?;
    fs::write(directory.join(IMAGE_MANIFEST), manifest).map_err(failed())
}

pub(super) async fn load(
    home: &Home,
    input: impl Read + Send + 'static,
    options: SnapshotLoadOptions,
) -> MicrosandboxResult<Snapshot> {
    home.ensure()?;
    let home = home.clone();
    let work = move || {
        let taken = if options.force { IfTaken::Replace } else { IfTaken::Fail };
        // Until the snapshot is there and pins it.
        let mut hold = None;
        let with_image = |image: &Path, manifest: &Manifest| -> MicrosandboxResult<()> {
            hold = load_image(&home, image, manifest)?;
            Ok(())
        };
        home.snapshots().import(input, options.name.as_deref(), taken, with_image)
    };
    Snapshot::new(on_thread("load-snapshot", work).await?)
}

/// Loads the image that came along, under the digest that the snapshot knows it by.
fn load_image(
    home: &Home,
    directory: &Path,
    manifest: &Manifest,
) -> MicrosandboxResult<Option<ImageHold>> {
    let path = directory.join(IMAGE_MANIFEST);
    let bytes = fs::read(&path).map_err(MicrosandboxError::file("read", &path))?;
    let (expected, found) = (&manifest.image.manifest_digest, Digest::of(&bytes).to_string());
    if *expected != found {
        return Err(MicrosandboxError::SnapshotIntegrity(format!(
            "snapshot image digest mismatch: manifest pinned {expected}, resolved {found}"
        )));
    }
    let store = home.images();
    let archive = ArchiveSource::Path(directory.join(IMAGE_ARCHIVE));
    let image = store.load_as(archive, &bytes, &Silent)?;
    Ok(store.hold(&image)?)
}
