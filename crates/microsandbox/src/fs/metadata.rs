//! What is known of files, and what can be set.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::Path,
};

use chrono::{DateTime, Utc};
use microsandbox_runtime::wire::{FileAttributes, FileEntry, FileKind, FileMetadata, Timestamp};

/// Something in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FsEntry {
    /// Its path. Bytes that are not UTF-8 are replaced; [`FsEntry::name`] has them.
    pub path: String,
    /// Its name, byte for byte.
    pub name: OsString,
    /// What it is; a link is a link.
    pub kind: FsEntryKind,
    /// Length in bytes.
    pub size: u64,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Time of the last change of the contents.
    pub modified: Option<DateTime<Utc>>,
}

impl FsEntry {
    pub(super) fn new(directory: &Path, entry: FileEntry) -> Self {
        let FileEntry { name, metadata } = entry;
        let path = directory.join(OsStr::from_bytes(&name));
        Self {
            path: path.to_string_lossy().into_owned(),
            name: OsString::from_vec(name),
            kind: metadata.kind.into(),
            size: metadata.size,
            mode: metadata.mode,
            modified: date(metadata.modified),
        }
    }
}

/// What something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsEntryKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a pipe, a socket.
    Other,
}

impl From<FileKind> for FsEntryKind {
    fn from(kind: FileKind) -> Self {
        match kind {
            FileKind::File => Self::File,
            FileKind::Directory => Self::Directory,
            FileKind::Symlink => Self::Symlink,
            _ => Self::Other,
        }
    }
}

/// What a file system of the guest says of something.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct FsMetadata {
    /// What it is.
    pub kind: FsEntryKind,
    /// Length in bytes.
    pub size: u64,
    /// Permissions, with set-id and sticky bits.
    pub mode: u32,
    /// Nobody but root may write to it.
    pub readonly: bool,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// How many names it has.
    pub links: u64,
    /// Time of the last access.
    pub accessed: Option<DateTime<Utc>>,
    /// Time of the last change of the contents.
    pub modified: Option<DateTime<Utc>>,
    /// Time it was made, where the file system knows.
    pub created: Option<DateTime<Utc>>,
}

impl From<FileMetadata> for FsMetadata {
    fn from(metadata: FileMetadata) -> Self {
        Self {
            kind: metadata.kind.into(),
            size: metadata.size,
            mode: metadata.mode,
            readonly: metadata.mode & 0o222 == 0,
            uid: metadata.uid,
            gid: metadata.gid,
            links: metadata.links,
            accessed: date(metadata.accessed),
            modified: date(metadata.modified),
            created: metadata.created.and_then(date),
        }
    }
}

/// What to set; what is none stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FsSetAttrs {
    /// Length in bytes; a file that grows has a hole at its end.
    pub size: Option<u64>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permissions, with set-id and sticky bits.
    pub mode: Option<u32>,
    /// Time of the last access.
    pub accessed: Option<DateTime<Utc>>,
    /// Time of the last change of the contents.
    pub modified: Option<DateTime<Utc>>,
}

impl From<FsSetAttrs> for FileAttributes {
    fn from(attrs: FsSetAttrs) -> Self {
        let time = |time: DateTime<Utc>| Timestamp {
            seconds: time.timestamp(),
            // A leap second counts as the end of the one before.
            nanoseconds: time.timestamp_subsec_nanos().min(999_999_999),
        };
        Self {
            mode: attrs.mode,
            uid: attrs.uid,
            gid: attrs.gid,
            size: attrs.size,
            accessed: attrs.accessed.map(time),
            modified: attrs.modified.map(time),
        }
    }
}

fn date(time: Timestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp(time.seconds, time.nanoseconds)
}
