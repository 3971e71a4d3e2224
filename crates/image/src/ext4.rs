//! The writable disk: an ext4 image that a guest lays over an image as overlayfs `upperdir` and `workdir`.
//!
//! ```text
//! /upper   what the guest changes, mode 0755; entries given at format time lie here
//! /work    overlayfs' own, mode 0755
//! ```
//! Formatting needs no external tool and writes only metadata: the file is sparse, has a journal and metadata
//! checksums. The bytes come from the `mkext4` crate, which this module hides; [`UpperDisk`] reads and edits what a
//! stopped machine has left. `docs/adr/0004-ext4-crates.md` says why these crates and no other.

mod disk;
mod grow;
mod runs;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use mkext4::{FsBuilder, InodeHandle, Meta, Options, ROOT};

pub use self::disk::{UpperDisk, UpperKind, UpperName, UpperOwner, UpperStat};
pub use self::grow::grow;
use self::runs::Runs;
use crate::{Cause, Error};

/// Smallest image: a journal and a few files need that much.
pub const MIN_SIZE_BYTES: u64 = 16 << 20;

/// The unit of sizes.
const BLOCK_BYTES: u64 = 4096;

/// How an upper disk is made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpperOptions {
    /// Size that the guest sees, rounded up to 4096; at least [`MIN_SIZE_BYTES`].
    pub size_bytes: u64,
    /// UUID of the file system. The same options make the same bytes (but for names that are not UTF-8, which carry the
    /// present time), so a unique disk needs a unique one.
    pub uuid: [u8; 16],
    /// Label, at most 16 bytes.
    pub label: Option<String>,
    /// Time of all that is made, in seconds since the epoch.
    pub epoch_seconds: i64,
    /// Whether [`format()`] returns only when the host has the disk on its own, which takes milliseconds. Without,
    /// a host that dies soon after may have none of it, or a part. On unless it is turned off.
    pub is_synced: bool,
}

impl UpperOptions {
    /// A disk of `size_bytes` with this `uuid`.
    pub fn new(size_bytes: u64, uuid: [u8; 16]) -> Self {
        Self { size_bytes, uuid, label: None, epoch_seconds: 0, is_synced: true }
    }
}

/// One entry written into `upper` at format time. Directories come before what they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct UpperEntry {
    /// Path as the guest will see it, not necessarily UTF-8; a leading slash means nothing.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: UpperEntryKind,
}

impl UpperEntry {
    /// An entry owned by root.
    pub fn new(path: impl Into<PathBuf>, mode: u16, kind: UpperEntryKind) -> Self {
        Self { path: path.into(), mode, uid: 0, gid: 0, kind }
    }
}

/// What an [`UpperEntry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpperEntryKind {
    /// A directory; it hides the attributes of the image's directory of that path, not its entries.
    Directory,
    /// A file with these bytes; long runs of zeros become holes.
    File(Vec<u8>),
    /// A file with the bytes of a file of this host; its holes stay holes.
    HostFile(PathBuf),
    /// A symbolic link with this target.
    Symlink(PathBuf),
    /// Removes what the image has under this path.
    Whiteout,
}

/// Makes an upper disk at `path`, which appears whole or not at all; an existing file is replaced.
///
/// # Errors
/// [`Error::FormatExt4`]; nothing is left behind.
pub fn format(path: &Path, options: &UpperOptions, entries: &[UpperEntry]) -> Result<(), Error> {
    let fault = |source: Cause| Error::FormatExt4 { path: path.to_owned(), source };
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let (now, later): (Vec<_>, Vec<_>) = entries.iter().partition(|entry| entry.is_utf8());
    let result = write_image(&partial, options, &now).and_then(|()| {
        add_entries(&partial, &later)?;
        fs::rename(&partial, path)?;
        if options.is_synced {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
        }
        Ok(())
    });
    result.map_err(|source| {
        // Best effort: the error that is returned matters more, and the next format replaces the file.
        let _ = fs::remove_file(&partial);
        fault(source)
    })
}

impl UpperEntry {
    /// Whether the formatter can say it.
    fn is_utf8(&self) -> bool {
        let target = match &self.kind {
            UpperEntryKind::Symlink(target) => target.to_str(),
            _ => Some(""),
        };
        self.path.to_str().and(target).is_some()
    }
}

/// Adds what the formatter cannot say to an image that it has made.
fn add_entries(partial: &Path, entries: &[&UpperEntry]) -> Result<(), Cause> {
    if entries.is_empty() {
        return Ok(());
    }
    let disk = UpperDisk::edit(partial)?;
    for entry in entries {
        let owner = UpperOwner { mode: entry.mode, uid: entry.uid, gid: entry.gid };
        match &entry.kind {
            UpperEntryKind::Directory => disk.make_directory(&entry.path, owner)?,
            UpperEntryKind::File(bytes) => disk.write(&entry.path, owner, &mut &**bytes)?,
            UpperEntryKind::HostFile(source) => {
                disk.write(&entry.path, owner, &mut File::open(source)?)?;
            }
            UpperEntryKind::Symlink(target) => disk.make_link(&entry.path, target)?,
            UpperEntryKind::Whiteout => disk.white_out(&entry.path)?,
        }
    }
    Ok(disk.finish()?)
}

fn write_image(
    partial: &Path,
    options: &UpperOptions,
    entries: &[&UpperEntry],
) -> Result<(), Cause> {
    let size_bytes = options.size_bytes.max(MIN_SIZE_BYTES).next_multiple_of(BLOCK_BYTES);
    let mut settings = Options::new(size_bytes, options.uuid, options.epoch_seconds);
    settings.label.clone_from(&options.label);
    // The guest's root owns the whole disk; blocks reserved for root would only be missing.
    settings.reserved_percent = 0;
    let mut builder = FsBuilder::new(settings)?;
    let directory = Meta::new(0o755, 0, 0, (options.epoch_seconds, 0));
    let upper = builder.mkdir(ROOT, "upper", directory)?;
    builder.mkdir(ROOT, "work", directory)?;
    let contents = Population { builder: &mut builder, epoch: options.epoch_seconds, upper }
        .declare(entries)?;
    let layout = builder.seal()?;
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(partial)?;
    file.set_len(size_bytes)?;
    let mut sink = SparseFile::new(file);
    let mut writer = layout.writer(&mut sink)?;
    for (handle, mut content) in contents {
        writer.fill(handle, &mut content)?;
    }
    writer.finish()?;
    sink.flush()?;
    if options.is_synced {
        sink.file.sync_all()?;
    }
    Ok(())
}

/// Entries on their way into `upper`.
struct Population<'a> {
    builder: &'a mut FsBuilder,
    epoch: i64,
    upper: InodeHandle,
}

impl Population<'_> {
    /// Declares every entry; answers with the files to fill, in order.
    fn declare<'e>(
        self,
        entries: &[&'e UpperEntry],
    ) -> Result<Vec<(InodeHandle, Runs<'e>)>, Cause> {
        let mut directories: std::collections::HashMap<PathBuf, InodeHandle> =
            [(PathBuf::new(), self.upper)].into();
        let mut contents = Vec::new();
        for entry in entries {
            let path = entry.path.strip_prefix("/").unwrap_or(&entry.path);
            let parent = path.parent().unwrap_or_else(|| Path::new(""));
            let parent = *directories
                .get(parent)
                .ok_or_else(|| format!("{} comes before its directory", path.display()))?;
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .ok_or_else(|| format!("{} is no UTF-8 name", path.display()))?;
            let meta = Meta::new(entry.mode & 0o7777, entry.uid, entry.gid, (self.epoch, 0));
            match &entry.kind {
                UpperEntryKind::Directory => {
                    let handle = self.builder.mkdir(parent, name, meta)?;
                    directories.insert(path.to_owned(), handle);
                }
                UpperEntryKind::File(_) | UpperEntryKind::HostFile(_) => {
                    let runs = match &entry.kind {
                        UpperEntryKind::HostFile(source) => Runs::of_file(File::open(source)?)?,
                        UpperEntryKind::File(bytes) => Runs::of_bytes(bytes),
                        _ => continue,
                    };
                    let handle = match runs.size() {
                        0 => self.builder.file(parent, name, meta, 0)?,
                        _ => self.builder.file_sparse(parent, name, meta, &runs.segments())?,
                    };
                    // A file without data has nothing to be filled with.
                    if runs.has_data() {
                        contents.push((handle, runs));
                    }
                }
                UpperEntryKind::Symlink(target) => {
                    let target = target.to_str().ok_or("the target is no UTF-8 text")?;
                    self.builder.symlink(parent, name, target, meta)?;
                }
                UpperEntryKind::Whiteout => {
                    let device = mkext4::SpecialKind::Char { major: 0, minor: 0 };
                    self.builder.mknod(parent, name, meta, device)?;
                }
            }
        }
        Ok(contents)
    }
}

/// Writes metadata and data; what is zero stays a hole. The formatter hands over single blocks, and a
/// system call for each would be most of the time that formatting takes.
struct SparseFile {
    file: File,
    /// What is to be written next, without a gap, and where.
    run: Vec<u8>,
    run_offset: u64,
}

/// Most of a run that is gathered.
const RUN_BYTES: usize = 1 << 20;

impl SparseFile {
    fn new(file: File) -> Self {
        Self { file, run: Vec::new(), run_offset: 0 }
    }

    /// Writes what is gathered.
    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.run, self.run_offset)?;
        self.run.clear();
        Ok(())
    }
}

impl mkext4::RegionSink for SparseFile {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        if offset != self.run_offset + self.run.len() as u64 || self.run.len() > RUN_BYTES {
            self.flush()?;
            self.run_offset = offset;
        }
        self.run.extend_from_slice(bytes);
        Ok(())
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}
