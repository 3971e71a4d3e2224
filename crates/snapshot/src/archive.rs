//! A snapshot as one `.tar.zst`, and back.
//!
//! ```text
//!  snapshot.json | its files, with their holes | image/, if one goes along
//! ```
//!
//! An archive may come from an enemy: nothing is made outside of a draft, only what the manifest
//! names is kept, everything is compared with its digests, and a few bytes cannot fill a disk.

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use microsandbox_archive::{Owners, Pack, Unpack, pack_all, unpack};

use crate::{
    Error, IfTaken, Manifest, Result, Snapshot, SnapshotStore,
    manifest::MANIFEST,
    store::{check_name, read_dir_if_there},
};

/// Name of the directory of what the caller sends along.
const IMAGE: &str = "image";

/// Beyond it each level costs more time than it saves bytes on disks of machines.
const LEVEL: i32 = 3;

/// What an archive may unpack to whatever its size: a small disk compresses very well.
const FREE_BYTES: u64 = 1 << 30;

/// How often its own size an archive may unpack to beyond that.
const FREE_RATIO: u64 = 256;

/// Writes a snapshot, checked before, as one archive; `image` is a directory of the
/// caller's that goes along.
///
/// # Errors
/// [`Error::Altered`], [`Error::Unlike`], [`Error::Archive`]; the stream has no end then.
pub fn export(snapshot: &Snapshot, image: Option<&Path>, output: impl Write) -> Result<()> {
    snapshot.check()?;
    let written = |source| Error::Archive(microsandbox_archive::Error::Write(source));
    let mut encoder = zstd::Encoder::new(output, LEVEL).map_err(written)?;
    encoder.include_checksum(true).map_err(written)?;
    let names = [MANIFEST].into_iter().chain(snapshot.manifest.files.keys().map(String::as_str));
    let mut members: Vec<_> = names.map(|name| (snapshot.path.join(name), name)).collect();
    members.extend(image.map(|path| (path.to_owned(), IMAGE)));
    let members: Vec<Pack<'_>> = members
        .iter()
        .map(|(path, name)| Pack { path, name: Path::new(name), follow: false })
        .collect();
    pack_all(&mut encoder, &members).map_err(Error::Archive)?;
    encoder.finish().and_then(|mut output| output.flush()).map_err(written)
}

/// Takes in what [`export`] wrote.
pub(crate) fn import<E: From<Error>>(
    store: &SnapshotStore,
    input: impl Read,
    name: Option<&str>,
    taken: IfTaken,
    with_image: impl FnOnce(&Path, &Manifest) -> std::result::Result<(), E>,
) -> std::result::Result<Snapshot, E> {
    let draft = store.draft()?;
    unpack_into(draft.path(), input)?;
    let (manifest, id) = Manifest::read(draft.path())?;
    let name = name.unwrap_or(&manifest.name).to_owned();
    check_name(&name)?;
    refuse_others(draft.path(), draft.path(), &manifest)?;
    let unpacked = Snapshot { name, path: draft.path().to_owned(), id, manifest };
    unpacked.verify()?;
    let image = draft.path().join(IMAGE);
    if image.exists() {
        with_image(&image, &unpacked.manifest)?;
        fs::remove_dir_all(&image).map_err(Error::file("remove", &image))?;
    }
    Ok(draft.put_in_place(&unpacked.name, id, unpacked.manifest, taken)?)
}

fn unpack_into(directory: &Path, input: impl Read) -> Result<()> {
    let read = |source| Error::Archive(microsandbox_archive::Error::Read(source));
    let counted = Counted { input: BufReader::new(input), bytes: 0 };
    let decoder = zstd::Decoder::with_buffer(counted).map_err(read)?;
    let mut limited = Limited { decoder, bytes: 0, beyond: None };
    let how = Unpack { only: None, owners: Owners::Process };
    let unpacked = unpack(&mut limited, directory, &how).map_err(Error::Archive);
    // The checksum comes last, behind what ends a tar stream.
    let done = match unpacked {
        Ok(()) => io::copy(&mut limited, &mut io::sink()).map(drop).map_err(read),
        failed => failed,
    };
    match limited.beyond {
        Some(limit_bytes) => Err(Error::Bomb { limit_bytes }),
        None => done,
    }
}

/// Refuses whatever the manifest does not name, and makes the rest the owner's alone.
fn refuse_others(root: &Path, directory: &Path, manifest: &Manifest) -> Result<()> {
    for entry in read_dir_if_there(directory)? {
        let path = entry.path();
        let stat = entry.metadata().map_err(Error::file("look at", &path))?;
        let name = path.strip_prefix(root).ok().and_then(Path::to_str).unwrap_or_default();
        let known = manifest.files.contains_key(name)
            || name == MANIFEST
            || Path::new(name).starts_with(IMAGE);
        let mode = if stat.is_dir() {
            refuse_others(root, &path, manifest)?;
            0o700
        } else if stat.is_file() && stat.nlink() == 1 && known {
            0o600
        } else {
            return Err(Error::Unlike { path, what: "the archive has it, the manifest has not" });
        };
        fs::set_permissions(&path, PermissionsExt::from_mode(mode))
            .map_err(Error::file("set the mode of", &path))?;
    }
    Ok(())
}

/// Counts what is taken from an input.
struct Counted<R> {
    input: R,
    bytes: u64,
}

impl<R: BufRead> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.input.read(buffer)?;
        self.bytes += len as u64;
        Ok(len)
    }
}

impl<R: BufRead> BufRead for Counted<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.input.fill_buf()
    }

    fn consume(&mut self, len: usize) {
        self.bytes += len as u64;
        self.input.consume(len);
    }
}

/// Ends what unpacks to more than its size justifies.
struct Limited<'a, R: BufRead> {
    decoder: zstd::Decoder<'a, Counted<R>>,
    bytes: u64,
    /// The limit that was exceeded.
    beyond: Option<u64>,
}

impl<R: BufRead> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.decoder.read(buffer)?;
        self.bytes += len as u64;
        let limit = FREE_BYTES + FREE_RATIO.saturating_mul(self.decoder.get_ref().bytes);
        if self.bytes > limit {
            self.beyond = Some(limit);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(len)
    }
}
