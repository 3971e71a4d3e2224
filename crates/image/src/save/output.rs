//! Outputs: members of an archive written to a file, a stream or a directory, whole or not at all.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use super::{ArchiveFormat, SaveTarget};
use crate::Error;

/// Where members go.
pub(super) struct Output {
    /// The target for messages; `-` for a stream.
    origin: PathBuf,
    place: Place,
}

enum Place {
    /// A directory beside the target, which takes its name at the end.
    Directory(TempDir),
    /// A file beside the target, which takes its name at the end.
    File(Box<tar::Builder<BufWriter<NamedTempFile>>>),
    Stream(Box<tar::Builder<BufWriter<Box<dyn Write + Send>>>>),
}

impl Output {
    pub(super) fn open(target: SaveTarget, format: ArchiveFormat) -> Result<Self, Error> {
        let path = match target {
            SaveTarget::Stream(stream) => return Self::stream(stream, format),
            SaveTarget::Path(path) => path,
        };
        let fault = |source| Error::WriteArchive { archive: path.clone(), source };
        let beside = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let beside = beside.unwrap_or_else(|| Path::new("."));
        let mut builder = tempfile::Builder::new();
        builder.prefix(".saving-");
        let place = if format == ArchiveFormat::OciLayout {
            if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(Error::ArchiveExists { path });
            }
            // As `mkdir` and `open` would have it: the umask takes its part.
            builder.permissions(Permissions::from_mode(0o777));
            Place::Directory(builder.tempdir_in(beside).map_err(fault)?)
        } else if path.exists() && !path.is_file() {
            // A pipe or a device cannot be replaced, it is written to.
            let file = File::options().write(true).open(&path).map_err(fault)?;
            return Ok(Self { origin: path, place: streaming(Box::new(file)) });
        } else {
            builder.permissions(Permissions::from_mode(0o666));
            let file = builder.tempfile_in(beside).map_err(fault)?;
            Place::File(Box::new(tar::Builder::new(BufWriter::with_capacity(1 << 20, file))))
        };
        Ok(Self { origin: path, place })
    }

    fn stream(stream: Box<dyn Write + Send>, format: ArchiveFormat) -> Result<Self, Error> {
        let origin = PathBuf::from("-");
        if format == ArchiveFormat::OciLayout {
            let source = io::Error::new(io::ErrorKind::Unsupported, "a layout is a directory");
            return Err(Error::WriteArchive { archive: origin, source });
        }
        Ok(Self { origin, place: streaming(stream) })
    }

    pub(super) fn add_document(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.add(name, bytes.len() as u64, &mut &*bytes)
    }

    /// Writes one member of exactly `size` bytes.
    pub(super) fn add(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let added = match &mut self.place {
            Place::Directory(directory) => write_file(&directory.path().join(name), content),
            Place::File(builder) => append(builder, name, size, content),
            Place::Stream(builder) => append(builder, name, size, content),
        };
        added.map_err(|source| self.fault(source))
    }

    /// Ends the archive and gives it its name.
    pub(super) fn finish(self) -> Result<(), Error> {
        let Self { origin, place } = self;
        let finish = || match place {
            Place::Directory(directory) => {
                fs::rename(directory.path(), &origin)?;
                // It has another name now, and is not to be removed.
                let _renamed = directory.keep();
                Ok(())
            }
            Place::File(builder) => {
                let file = builder.into_inner()?.into_inner()?;
                file.as_file().sync_all()?;
                file.persist(&origin).map(drop).map_err(|error| error.error)
            }
            Place::Stream(builder) => builder.into_inner()?.flush(),
        };
        finish().map_err(|source| Error::WriteArchive { archive: origin.clone(), source })
    }

    pub(super) fn fault(&self, source: io::Error) -> Error {
        Error::WriteArchive { archive: self.origin.clone(), source }
    }
}

fn streaming(stream: Box<dyn Write + Send>) -> Place {
    Place::Stream(Box::new(tar::Builder::new(BufWriter::with_capacity(1 << 20, stream))))
}

fn append<W: Write>(
    builder: &mut tar::Builder<W>,
    name: &str,
    size: u64,
    content: &mut dyn Read,
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o644);
    header.set_size(size);
    // No times, no owners: the same image gives the same archive.
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    builder.append_data(&mut header, name, content)
}

fn write_file(path: &Path, content: &mut dyn Read) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::create_new(path)?;
    io::copy(content, &mut file)?;
    file.sync_all()
}
