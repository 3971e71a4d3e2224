//! Checkpoints: a stopped VM as files, from which machines of the same shape go on.
//!
//! ```text
//!  <checkpoint>/
//!    memory            the guest's memory that is not zero, extent after extent
//!    devices           state of processors and devices, as the VMM writes it
//!    upper.ext4        the writable disk, where one is mounted
//!    checkpoint.json   shape, extents, digests; written last
//! ```
//!
//! Templates and snapshots of running machines are both this. A machine gets a copy of the memory,
//! read and checked against its digest in full, never a mapping of the file: the guest-facing process
//! needs no access to what other machines start from, and what it runs on is what was saved. Nothing
//! here is synced: what a crash of the host leaves half written fails its digest.

mod error;
mod memory;
mod shape;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use microsandbox_snapshot::{Digest, clone_file};
use serde::{Deserialize, Serialize};

use crate::host_usage::bytes_on_disk;

pub use error::CheckpointError;
pub use shape::Shape;
pub(crate) use shape::{FileDigests, root_of, shape_of};

/// Version of the files; another one is not read.
const FORMAT: u32 = 1;

const MEMORY: &str = "memory";
const DEVICES: &str = "devices";
/// The writable disk of a machine that has one mounted.
pub(crate) const UPPER: &str = "upper.ext4";
const MANIFEST: &str = "checkpoint.json";

/// Largest device state taken; that of 64 processors is below a MiB.
pub(crate) const MAX_DEVICES: u64 = 16 << 20;

/// A checkpoint whose manifest has been read.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    manifest: Manifest,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    shape: Shape,
    memory: memory::Layout,
    devices: Devices,
    /// Digest of what the writable disk holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upper: Option<Digest>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Devices {
    size_bytes: u64,
    /// BLAKE3 of the file.
    digest: String,
}

type Result<T> = std::result::Result<T, CheckpointError>;

impl Checkpoint {
    /// Saves a machine that stands still into `dir`, which exists and is empty. Blocks.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; the caller removes the directory.
    pub(crate) fn write(dir: &Path, shape: Shape, vm: &SavedVm<'_>) -> Result<Self> {
        StoredVm::write(dir, vm)?.seal(shape)
    }

    /// Reads the manifest of the checkpoint at `dir`; `None` when there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Read`], [`CheckpointError::Damaged`].
    pub fn open(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(MANIFEST);
        let json = match fs::read(&path) {
            Ok(json) => json,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CheckpointError::Read { path, source }),
        };
        let damaged = |what: String| CheckpointError::Damaged { path: path.clone(), what };
        let format: Format =
            serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        if format.format != FORMAT {
            return Err(damaged(format!("it has format {}, not {FORMAT}", format.format)));
        }
        let manifest = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        Ok(Some(Self { dir: dir.to_owned(), manifest }))
    }

    /// What a machine must be to go on from here.
    pub fn shape(&self) -> &Shape {
        &self.manifest.shape
    }

    /// Bytes that its files take on the disk of the host.
    pub fn size_bytes(&self) -> u64 {
        let Manifest { memory, devices, .. } = &self.manifest;
        memory.stored_bytes() + devices.size_bytes + bytes_on_disk(&self.dir.join(UPPER))
    }

    /// Fills a machine's memory, all zeros before, and checks what it is filled with. Blocks.
    ///
    /// # Errors
    /// [`CheckpointError`]; the memory is of no use then.
    pub(crate) fn fill(&self, memory: &File) -> Result<()> {
        let path = self.dir.join(MEMORY);
        let read = |source| CheckpointError::Read { path: path.clone(), source };
        let mut stored = File::open(&path).map_err(read)?;
        match self.manifest.memory.fill(&mut stored, memory) {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(CheckpointError::Damaged { path, what: "its digest is another".into() })
            }
            Err(source) => Err(CheckpointError::Read { path, source }),
        }
    }

    /// The state of processors and devices, checked.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub(crate) fn devices(&self) -> Result<Vec<u8>> {
        let path = self.dir.join(DEVICES);
        let devices = &self.manifest.devices;
        let damaged =
            |what: &str| CheckpointError::Damaged { path: path.clone(), what: what.into() };
        if devices.size_bytes > MAX_DEVICES {
            return Err(damaged("it is larger than any machine's"));
        }
        let bytes = fs::read(&path).map_err(CheckpointError::read(&path))?;
        if blake3::hash(&bytes).to_hex().as_str() != devices.digest {
            return Err(damaged("its digest is another"));
        }
        Ok(bytes)
    }

    /// Puts a copy of the writable disk at `to`, and checks it. Blocks.
    ///
    /// # Errors
    /// [`CheckpointError`]; what is at `to` is of no use then.
    pub(crate) fn clone_upper(&self, to: &Path) -> Result<()> {
        let path = self.dir.join(UPPER);
        let from = File::open(&path).map_err(CheckpointError::read(&path))?;
        let mut copy = OpenOptions::new();
        copy.read(true).write(true).create(true).truncate(true).mode(0o600);
        let copy = copy.open(to).map_err(CheckpointError::write(to.to_owned()))?;
        clone_file(&from, &copy).map_err(CheckpointError::write(to.to_owned()))?;
        let digest = Digest::of_content(&copy).map_err(CheckpointError::read(to))?;
        if Some(digest) != self.manifest.upper {
            return Err(CheckpointError::Damaged { path, what: "its digest is another".into() });
        }
        Ok(())
    }

    /// Checks everything without a machine. Blocks as long as reading it takes.
    ///
    /// # Errors
    /// [`CheckpointError`] naming the file.
    pub fn verify(&self) -> Result<()> {
        self.devices()?;
        let nowhere = File::options().write(true).open("/dev/null");
        self.fill(&nowhere.map_err(CheckpointError::read(Path::new("/dev/null")))?)
    }

    /// Notes that it was used now.
    pub(crate) fn mark_used(&self) {
        let marked = File::open(self.dir.join(MANIFEST))
            .and_then(|file| file.set_modified(SystemTime::now()));
        if let Err(error) = marked {
            tracing::debug!(%error, "could not note the use of a checkpoint");
        }
    }

    /// When it was last used.
    pub(crate) fn last_used(&self) -> SystemTime {
        let modified = fs::metadata(self.dir.join(MANIFEST)).and_then(|data| data.modified());
        modified.unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The one member that every format has.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// A machine whose state is in files that are no checkpoint yet. It may go on.
#[derive(Debug)]
pub(crate) struct StoredVm {
    dir: PathBuf,
    memory: memory::Stored,
    memory_file: File,
    devices: Devices,
    upper: Option<Digest>,
}

impl StoredVm {
    /// Copies the state of a machine that stands still into `dir`, which exists and is empty. Blocks.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; the caller removes the directory.
    pub(crate) fn write(dir: &Path, vm: &SavedVm<'_>) -> Result<Self> {
        let failed = |name: &str| CheckpointError::write(dir.join(name));
        let mut memory_file = create(&dir.join(MEMORY))?;
        let memory = memory::store(vm.memory, &mut memory_file).map_err(failed(MEMORY))?;
        let mut devices = create(&dir.join(DEVICES))?;
        devices.write_all(vm.devices).map_err(failed(DEVICES))?;
        let devices = Devices {
            size_bytes: vm.devices.len() as u64,
            digest: blake3::hash(vm.devices).to_hex().to_string(),
        };
        Ok(Self { dir: dir.to_owned(), memory, memory_file, devices, upper: vm.upper })
    }

    /// Makes a checkpoint of it. Blocks as long as reading the memory again takes.
    ///
    /// # Errors
    /// [`CheckpointError::Write`]; the caller removes the directory.
    pub(crate) fn seal(self, shape: Shape) -> Result<Checkpoint> {
        let failed = |name: &str| CheckpointError::write(self.dir.join(name));
        let memory = self.memory.seal(&self.memory_file).map_err(failed(MEMORY))?;
        let (devices, upper) = (self.devices, self.upper);
        let manifest = Manifest { format: FORMAT, shape, memory, devices, upper };
        let json = serde_json::to_vec_pretty(&manifest).map_err(io::Error::from);
        let written = json.and_then(|json| write_file(&self.dir.join(MANIFEST), &json));
        written.map_err(failed(MANIFEST))?;
        Ok(Checkpoint { dir: self.dir, manifest })
    }
}

/// A machine that stands still, with its state read out of it.
#[derive(Debug)]
pub(crate) struct SavedVm<'a> {
    /// The guest's memory.
    pub(crate) memory: &'a File,
    /// The state of everything else.
    pub(crate) devices: &'a [u8],
    /// Digest of the writable disk that it has mounted.
    pub(crate) upper: Option<Digest>,
}

fn create(path: &Path) -> Result<File> {
    let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
    opened.map_err(CheckpointError::write(path.to_owned()))
}

fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::vmm::new_memory;

    const SIZE: u64 = 8 << 20;

    /// A memory with data at its begin, across blocks, and at its end.
    fn memory() -> File {
        let memory = new_memory(SIZE).unwrap();
        for (offset, len) in [(0, 3), (200_000, 150_000), (SIZE - 5, 5)] {
            memory.write_all_at(&vec![7; len], offset).unwrap();
        }
        memory
    }

    fn content(memory: &File) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(SIZE).unwrap()];
        memory.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn written(dir: &Path) -> Checkpoint {
        let vm = SavedVm { memory: &memory(), devices: b"device state", upper: None };
        Checkpoint::write(dir, Shape::default(), &vm).unwrap();
        Checkpoint::open(dir).unwrap().unwrap()
    }

    #[test]
    fn memory_and_devices_come_back_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Checkpoint::open(dir.path()).unwrap().is_none());
        let checkpoint = written(dir.path());
        let filled = new_memory(SIZE).unwrap();
        checkpoint.fill(&filled).unwrap();
        assert!(content(&filled) == content(&memory()));
        assert_eq!(checkpoint.devices().unwrap(), b"device state");
        checkpoint.verify().unwrap();
        // Zeros cost nothing: five blocks of 64 KiB hold data.
        assert_eq!(fs::metadata(dir.path().join(MEMORY)).unwrap().len(), 5 << 16);
    }

    #[test]
    fn whatever_was_altered_is_noticed() {
        type Harm = fn(&Path);
        let truncate = |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        };
        let flip = |path: &Path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[1] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        let append = |path: &Path| {
            File::options().append(true).open(path).unwrap().write_all(b"x").unwrap();
        };
        let remove = |path: &Path| fs::remove_file(path).unwrap();
        let harms: [(&str, Harm); 4] =
            [("truncated", truncate), ("flipped", flip), ("appended", append), ("gone", remove)];
        for file in [MEMORY, DEVICES] {
            for (name, harm) in harms {
                let dir = tempfile::tempdir().unwrap();
                let checkpoint = written(dir.path());
                harm(&dir.path().join(file));
                assert!(checkpoint.verify().is_err(), "{file} {name}");
            }
        }
    }

    #[test]
    fn manifest_that_lies_is_refused() {
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("\"format\": 1", "\"format\": \"1\""),
            ("\"size_bytes\": 8388608", "\"size_bytes\": 4096"),
            ("\"len\": 65536", "\"len\": 65535"),
            ("\"offset\": 0", "\"offset\": 18446744073709551615"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            written(dir.path());
            let path = dir.path().join(MANIFEST);
            let json = fs::read_to_string(&path).unwrap();
            assert!(json.contains(from), "{json}");
            fs::write(&path, json.replacen(from, to, 1)).unwrap();
            let judged = Checkpoint::open(dir.path()).and_then(|found| {
                let filled = new_memory(SIZE).unwrap();
                found.unwrap().fill(&filled)
            });
            assert!(judged.is_err(), "{from} as {to}");
        }
    }
}
