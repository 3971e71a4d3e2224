//! Why image operations stop, and what to do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{DiffId, Digest, Platform, Reference};

/// What lies beneath an error, whichever library it comes from.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an image operation stopped. Nothing half-made is visible in the store afterwards.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An archive holds no image that could be loaded.
    #[error("archive {} holds no image", archive.display())]
    ArchiveEmpty {
        /// The archive; `-` for standard input and other streams.
        archive: PathBuf,
    },

    /// An archive's table of contents names a file that the archive does not have.
    #[error("archive {} names {member:?} but does not contain it", archive.display())]
    ArchiveMember {
        /// The archive; `-` for standard input and other streams.
        archive: PathBuf,
        /// Path inside the archive.
        member: String,
    },

    /// A document inside an archive is larger than anything real.
    #[error("{member:?} in archive {} is larger than {limit} bytes", archive.display())]
    ArchiveMemberTooLarge {
        /// The archive; `-` for standard input and other streams.
        archive: PathBuf,
        /// Path inside the archive.
        member: String,
        /// Most bytes accepted.
        limit: u64,
    },

    /// An image was to be saved where something is already.
    #[error("{} is there already and is not empty", path.display())]
    ArchiveExists {
        /// Directory that was to be made.
        path: PathBuf,
    },

    /// A blob is not what its digest promises.
    #[error("{subject} has digest {actual} instead of {expected}")]
    BlobDigest {
        /// Which blob.
        subject: &'static str,
        /// Digest it was asked for by.
        expected: Digest,
        /// Digest of what came.
        actual: Digest,
    },

    /// A blob is larger than its descriptor says, or than anything real.
    #[error("{subject} {digest} is larger than {limit} bytes")]
    BlobTooLarge {
        /// Which blob.
        subject: &'static str,
        /// Its digest.
        digest: Digest,
        /// Most bytes accepted.
        limit: u64,
    },

    /// Stored credentials could not be read.
    #[error("read the credentials for {registry}")]
    Credentials {
        /// Host of the registry.
        registry: String,
        /// What the credential store or helper said.
        #[source]
        source: Cause,
    },

    /// The registry wants other credentials, or has no such repository for this user.
    #[error("registry {registry} denies access to {repository}")]
    Denied {
        /// Host of the registry.
        registry: String,
        /// Repository asked for.
        repository: String,
    },

    /// Something in an ext4 image could not be read or changed.
    #[error("{action} {} in ext4 image {}", Path::new("/").join(entry).display(), disk.display())]
    Ext4 {
        /// What was being done.
        action: &'static str,
        /// The image.
        disk: PathBuf,
        /// The entry, as the guest sees it; empty for the whole image.
        entry: PathBuf,
        /// What the file system driver said, of the kind that the operating system would have given it.
        #[source]
        source: io::Error,
    },

    /// Something of an image could not be fetched.
    #[error("fetch {subject} of {image}")]
    Fetch {
        /// What was being fetched.
        subject: Subject,
        /// The image, as the caller named it.
        image: String,
        /// What went wrong.
        #[source]
        source: Box<Self>,
    },

    /// An ext4 image cannot be made this way.
    #[error("format ext4 image {}", path.display())]
    FormatExt4 {
        /// Image to be made.
        path: PathBuf,
        /// What the formatter said.
        #[source]
        source: Cause,
    },

    /// A request to a registry failed before an answer came.
    #[error("reach registry {registry}")]
    Http {
        /// Host of the registry.
        registry: String,
        /// What the connection said.
        #[source]
        source: Cause,
    },

    /// A registry answered a request with a failure.
    #[error("registry {registry} answers {status} to {url}")]
    HttpStatus {
        /// Host of the registry.
        registry: String,
        /// HTTP status code.
        status: u16,
        /// What was asked.
        url: String,
    },

    /// Something asked for an image that neither the store nor the registry has.
    #[error("image {reference} does not exist on its registry")]
    ImageNotFound {
        /// The image asked for.
        reference: Box<Reference>,
    },

    /// A layer could not be turned into a file system.
    #[error("layer {layer} of {image}")]
    Layer {
        /// The image, as the caller named it or by digest.
        image: String,
        /// Digest of the layer as it travels, or its diff id.
        layer: Digest,
        /// What was wrong.
        #[source]
        source: Box<LayerError>,
    },

    /// A layer is not in the store as a whole: its file system or the record of its archive is missing.
    #[error("layer {layer} of {image} is not there as a whole")]
    LayerIncomplete {
        /// The image.
        image: String,
        /// The layer.
        layer: DiffId,
    },

    /// Layers that are each sound cannot be laid over one another.
    #[error("layer {layer} does not fit the layers below it: {entry:?} {reason}")]
    MergeLayers {
        /// Layer whose entry does not fit.
        layer: DiffId,
        /// The entry.
        entry: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An index offers no image for this machine.
    #[error("{image} has no image for {wanted}")]
    NoPlatform {
        /// The image.
        image: String,
        /// Platform asked for.
        wanted: Box<Platform>,
        /// Platforms on offer.
        offered: Vec<String>,
    },

    /// The image is not in the store and fetching was forbidden.
    #[error("image {reference} is not in the local store")]
    NotCached {
        /// The image asked for.
        reference: Box<Reference>,
    },

    /// An image has nothing at a path, or something else than was asked for.
    #[error("{path:?} in {image} {reason}")]
    NoSuchFile {
        /// The image.
        image: String,
        /// Path inside the image.
        path: PathBuf,
        /// What is there instead, if anything.
        reason: &'static str,
    },

    /// The image is not in the store, and the network must not be used.
    #[error("image {reference} is not in the local store, and the network must not be used")]
    Offline {
        /// The image asked for.
        reference: Box<Reference>,
    },

    /// Indexes that point to indexes without end.
    #[error("{image} is an index nested more than {limit} deep")]
    NestedTooDeep {
        /// The image.
        image: String,
        /// Deepest nesting accepted.
        limit: usize,
    },

    /// A configuration is not one, or describes something else than layers.
    #[error("configuration {digest} is not an image configuration")]
    ParseConfig {
        /// Digest of the blob.
        digest: Digest,
        /// Where reading stopped.
        #[source]
        source: Cause,
    },

    /// Text is not a digest.
    #[error("{text:?} is not a digest")]
    ParseDigest {
        /// The text.
        text: String,
    },

    /// A manifest is not that of the image it came with.
    #[error("manifest {digest} is not that of the image in the archive")]
    ManifestOfOther {
        /// Digest of the manifest.
        digest: Digest,
    },

    /// A document is neither a manifest nor an index.
    #[error("document {digest} is not an image manifest or index")]
    ParseManifest {
        /// Digest of the document.
        digest: Digest,
        /// Where reading stopped.
        #[source]
        source: Cause,
    },

    /// Text does not say which registry is mirrored where.
    #[error("{text:?} is not a mirror")]
    ParseMirror {
        /// The text.
        text: String,
    },

    /// Text is not a platform.
    #[error("{text:?} is not a platform")]
    ParsePlatform {
        /// The text.
        text: String,
    },

    /// Text is not the name of an image.
    #[error("{text:?} is not an image reference: {reason}")]
    ParseReference {
        /// The text.
        text: String,
        /// The rule it breaks.
        reason: &'static str,
    },

    /// A directory that is to become an image could not be read.
    #[error("read {}", path.display())]
    ReadRootfs {
        /// File or directory in it.
        path: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },

    /// An archive could not be read.
    #[error("read archive {}", archive.display())]
    ReadArchive {
        /// The archive; `-` for standard input and other streams.
        archive: PathBuf,
        /// What the file system or the tar reader said.
        #[source]
        source: Cause,
    },

    /// A file with certificates could not be used.
    #[error("read certificates from {}", path.display())]
    ReadCertificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Cause,
    },

    /// A file of the store could not be read.
    #[error("read {}", path.display())]
    ReadStore {
        /// File or directory inside the store.
        path: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },

    /// No encrypted connection can be made from this machine.
    #[error("prepare encrypted connections to registry {registry}")]
    SetUpTls {
        /// Host of the registry.
        registry: String,
        /// What is missing.
        #[source]
        source: Cause,
    },

    /// The machinery for waiting on the network could not be started.
    #[error("start an async runtime")]
    StartRuntime {
        /// What the kernel reported.
        #[source]
        source: io::Error,
    },

    /// A registry stopped sending.
    #[error("registry {registry} sent nothing for {after:?}")]
    Stalled {
        /// Host of the registry.
        registry: String,
        /// How long it was waited for.
        after: Duration,
    },

    /// A file of the store holds something else than what was written to it.
    #[error("{} is damaged: {reason}", path.display())]
    StoreDamaged {
        /// File inside the store.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An image has more layers than any engine would make.
    #[error("manifest {digest} has {count} layers, more than {limit}")]
    TooManyLayers {
        /// Digest of the manifest.
        digest: Digest,
        /// Layers it lists.
        count: usize,
        /// Most layers accepted.
        limit: usize,
    },

    /// Manifest and configuration of an image disagree.
    #[error("image {digest} lists {layers} layers but {diff_ids} diff ids")]
    UnevenLayers {
        /// Digest of the manifest or configuration.
        digest: Digest,
        /// Layers in the manifest.
        layers: usize,
        /// Diff ids in the configuration.
        diff_ids: usize,
    },

    /// A registry's answer does not follow the distribution protocol.
    #[error("registry {registry} breaks the protocol: {reason}")]
    UnexpectedAnswer {
        /// Host of the registry.
        registry: String,
        /// What was wrong with the answer.
        reason: &'static str,
    },

    /// An archive could not be written; nothing of it is left where it was to be.
    #[error("write archive {}", archive.display())]
    WriteArchive {
        /// The archive; `-` for standard output and other streams.
        archive: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },

    /// A file of the store could not be written; the half-written file has been removed.
    #[error("write {}", path.display())]
    WriteStore {
        /// File or directory inside the store.
        path: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What the user can do about it, where there is something; one sentence, imperative.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::ArchiveEmpty { .. } | Self::ReadArchive { .. } => {
                "give an OCI layout directory, or an archive made by `docker save`, `podman save` or `skopeo copy`".into()
            }
            Self::ArchiveExists { .. } => "name a directory that does not exist yet".into(),
            Self::Credentials { registry, .. } | Self::Denied { registry, .. } => {
                format!("check the name, and log in with `docker login {registry}`")
            }
            Self::Fetch { source, .. } => return source.hint(),
            Self::Http { registry, .. } => {
                format!("check that {registry} is right and reachable from this machine")
            }
            Self::ImageNotFound { reference } => {
                format!("check the name and the tag of {}", reference.familiar())
            }
            Self::LayerIncomplete { .. } => {
                "remove the image and pull or load it again: what is missing was never kept, or is lost".into()
            }
            Self::NoPlatform { offered, .. } => format!("it is offered for {}", offered.join(", ")),
            Self::NotCached { .. } => "pull or load the image first, or allow pulling".into(),
            Self::Offline { reference } => format!(
                "pull {0} where there is a network, or load it from an archive: `msb save {0}` on another machine, then `msb load`",
                reference.familiar()
            ),
            Self::ParseMirror { .. } => {
                "write a mirror as REGISTRY=URL, for example docker.io=https://mirror.example".into()
            }
            Self::ParseReference { .. } => {
                "write an image as [REGISTRY/]NAME[:TAG][@sha256:DIGEST], for example debian:12".into()
            }
            Self::ParsePlatform { .. } => {
                "write a platform as OS/ARCHITECTURE, for example linux/arm64".into()
            }
            Self::SetUpTls { .. } => {
                "install the certificates of authorities (Debian: apt-get install ca-certificates)".into()
            }
            Self::Stalled { .. } => "try again; what was finished is kept".into(),
            Self::StoreDamaged { .. } => "remove the image and pull it again".into(),
            Self::HttpStatus { status: 429, .. } => "wait, or log in: the registry limits pulls".into(),
            Self::BlobDigest { .. } | Self::Layer { .. } => {
                if self.is_disk_full() {
                    "free some disk space and try again".into()
                } else {
                    "fetch or export the image again; if it stays so, its publisher has to mend it".into()
                }
            }
            Self::WriteArchive { source, .. } | Self::WriteStore { source, .. }
                if source.kind() == io::ErrorKind::StorageFull =>
            {
                "free some disk space and try again".into()
            }
            _ => return None,
        };
        Some(hint)
    }

    /// Whether the same input would fail the same way again, so that nothing of it is worth keeping.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.is_lasting(),
            Self::MergeLayers { .. } => true,
            Self::Layer { source, .. } => {
                !matches!(**source, LayerError::Read { .. } | LayerError::Write { .. })
            }
            _ => false,
        }
    }

    /// The same error with what was being fetched, and of which image, where it does not say so itself.
    pub(crate) fn fetching(self, subject: Subject, image: &Reference) -> Self {
        match self {
            Self::Credentials { .. }
            | Self::Denied { .. }
            | Self::Fetch { .. }
            | Self::ImageNotFound { .. }
            | Self::NestedTooDeep { .. }
            | Self::NoPlatform { .. }
            | Self::ReadCertificates { .. }
            | Self::SetUpTls { .. } => self,
            other => Self::Fetch { subject, image: image.familiar(), source: other.into() },
        }
    }

    fn is_disk_full(&self) -> bool {
        let Self::Layer { source, .. } = self else { return false };
        matches!(&**source, LayerError::Write { source, .. }
            if source.kind() == io::ErrorKind::StorageFull)
    }
}

/// Part of an image that is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Subject {
    /// The configuration.
    Configuration,
    /// The layer that travels under this digest.
    Layer(Digest),
    /// The manifest, or the index that leads to it.
    Manifest,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration => f.write_str("the configuration"),
            Self::Layer(digest) => write!(f, "layer {digest}"),
            Self::Manifest => f.write_str("the manifest"),
        }
    }
}

/// What is wrong with one layer's stream, or with storing it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The bytes that travelled are not the ones the manifest promised.
    #[error("the blob has digest {actual} instead of {expected}")]
    BlobDigest {
        /// Digest in the manifest.
        expected: Digest,
        /// Digest of what came.
        actual: Digest,
    },

    /// More or fewer bytes travelled than the manifest promised.
    #[error("the blob has {actual} bytes instead of {expected}")]
    BlobSize {
        /// Size in the manifest.
        expected: u64,
        /// Bytes that came, at least.
        actual: u64,
    },

    /// The compressed stream is damaged.
    #[error("decompress the layer")]
    Decompress {
        /// What the decoder said.
        #[source]
        source: io::Error,
    },

    /// The unpacked bytes are not the ones the configuration promised.
    #[error("the unpacked layer has digest {actual} instead of {expected}")]
    DiffId {
        /// Diff id in the configuration.
        expected: DiffId,
        /// Diff id of what came.
        actual: DiffId,
    },

    /// One entry of the archive cannot be part of a file system.
    #[error("entry {entry:?}: {fault}")]
    Entry {
        /// Name of the entry, printable.
        entry: String,
        /// What is wrong with it.
        fault: EntryFault,
    },

    /// An entry is larger than is reasonable for what it is.
    #[error("entry {entry:?} has {size} bytes, more than {limit}")]
    EntryTooLarge {
        /// Name of the entry, printable.
        entry: String,
        /// Its size.
        size: u64,
        /// Most bytes accepted.
        limit: u64,
    },

    /// The layer unpacks to more than anything real does: a decompression bomb.
    #[error("it unpacks to more than {ratio} times its size")]
    Expansion {
        /// Most times its size accepted.
        ratio: u32,
    },

    /// A header of the archive is malformed.
    #[error("bad tar header at byte {offset}: {reason}")]
    Header {
        /// Where in the unpacked stream.
        offset: u64,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// The layer's stream could not be read.
    #[error("read the layer")]
    Read {
        /// What the source reported.
        #[source]
        source: io::Error,
    },

    /// The stream holds more than a file system image can.
    #[error("it has more than {limit} {what}")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// Most accepted.
        limit: u64,
    },

    /// The archive ends in the middle of an entry.
    #[error("the archive is cut off at byte {offset}")]
    Truncated {
        /// Where in the unpacked stream.
        offset: u64,
    },

    /// The layer is compressed in a way that no image specification allows.
    #[error("the layer is compressed with {format}, which images do not use")]
    UnknownCompression {
        /// Name of the format.
        format: &'static str,
    },

    /// The layer's file could not be written.
    #[error("write {}", path.display())]
    Write {
        /// File inside the store.
        path: PathBuf,
        /// What the file system reported.
        #[source]
        source: io::Error,
    },
}

/// Why an entry of an archive cannot be part of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryFault {
    /// A device number that the kernel has no bits for.
    BadDevice,
    /// A component of the name is longer than 255 bytes, or the name has a NUL.
    BadName,
    /// A hard link to a directory.
    LinkToDirectory,
    /// A link without a target, or with one longer than 4095 bytes.
    BadTarget,
    /// A component of the name is a file.
    NotADirectory,
    /// The name, or a hard link's target, has a `..`.
    ParentReference,
    /// The root of the image is not a directory.
    RootNotADirectory,
    /// More nested directories than any real tree has.
    TooDeep,
    /// Symbolic links that lead to one another.
    TooManyLinks,
    /// Extended attributes larger than a file system can hold.
    XattrsTooLarge,
}

impl fmt::Display for EntryFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadDevice => "its device number is absurd",
            Self::BadName => "the name is too long or has a NUL",
            Self::LinkToDirectory => "it is a hard link to a directory",
            Self::BadTarget => "the link has no usable target",
            Self::NotADirectory => "a component of its path is not a directory",
            Self::ParentReference => "`..` would leave its place",
            Self::RootNotADirectory => "the root must be a directory",
            Self::TooDeep => "it lies too deep",
            Self::TooManyLinks => "its path goes through too many symbolic links",
            Self::XattrsTooLarge => "its extended attributes are too large",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_object_and_hints_the_remedy() {
        let error: Error = "Debian".parse::<Reference>().unwrap_err();
        assert_eq!(
            error.to_string(),
            r#""Debian" is not an image reference: the name must be lower case"#
        );
        assert!(error.hint().is_some_and(|hint| hint.contains("debian:12")));
        let full = Error::WriteStore {
            path: "x".into(),
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        assert_eq!(full.hint().as_deref(), Some("free some disk space and try again"));
    }
}
