//! What two machines must have in common for one to go on from the other's state.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::CheckpointError;
use crate::{Accel, SelectedVmm, orders::FreshRoot, vmm::VmSpec};

/// Everything that shapes a VM. Machines of equal shape are interchangeable before they are told who
/// they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Digest of the guest kernel.
    pub kernel: String,
    /// Digest of the initial root, which is the agent.
    pub initramfs: String,
    /// Digest of the VMM's program, which is its version, too.
    pub vmm: String,
    /// The host's processor where the guest runs on it; empty under emulation.
    pub processor: String,
    /// How the VMM is started: the devices, the processors, the memory, the kernel's command line.
    pub machine: Vec<String>,
    /// The root file system that the guest has mounted; empty before it has one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub root: String,
}

impl Shape {
    /// A short name for the shape, the same for equal ones and no others.
    pub fn key(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        let parts = [&self.kernel, &self.initramfs, &self.vmm, &self.processor];
        for part in parts.into_iter().chain(&self.machine).chain([&self.root]) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
        }
        hasher.finalize().to_hex().as_str()[..KEY_LEN].to_owned()
    }

    /// Says which part makes `self` another than `wanted`, if one does.
    ///
    /// # Errors
    /// [`CheckpointError::OtherShape`].
    pub fn check(&self, wanted: &Self) -> Result<(), CheckpointError> {
        let parts = [
            ("guest kernel", self.kernel == wanted.kernel),
            ("agent", self.initramfs == wanted.initramfs),
            ("VMM", self.vmm == wanted.vmm),
            ("processor", self.processor == wanted.processor),
            ("set of devices, processors or memory", self.machine == wanted.machine),
            ("root file system", self.root == wanted.root),
        ];
        match parts.into_iter().find(|(_, same)| !same) {
            Some((part, _)) => Err(CheckpointError::OtherShape { part }),
            None => Ok(()),
        }
    }
}

/// Hex digits of a key: 128 bits.
const KEY_LEN: usize = 32;

/// The shape of what `vmm` makes of `spec`; `None` where the driver can restore nothing.
///
/// # Errors
/// [`CheckpointError::Read`] naming the part of the machine that cannot be read.
pub(crate) fn shape_of(
    vmm: &SelectedVmm,
    spec: &VmSpec,
    digests: &mut FileDigests,
) -> Result<Option<Shape>, CheckpointError> {
    let (Some(machine), Some(program)) = (vmm.machine(spec), &vmm.program) else {
        return Ok(None);
    };
    Ok(Some(Shape {
        kernel: digests.of(&spec.kernel)?,
        initramfs: digests.of(&spec.initramfs)?,
        vmm: digests.of(program)?,
        processor: match vmm.accel {
            Accel::Kvm => host_processor(),
            Accel::Tcg => String::new(),
        },
        machine,
        root: String::new(),
    }))
}

/// Names a root file system that nobody has used: the very files of the image, and the size of the
/// writable disk above them.
///
/// The files, not what the image is called: a guest has read from them, and goes on with what it has
/// read.
pub(crate) fn root_of(fresh: &FreshRoot) -> Result<String, CheckpointError> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&fresh.upper_bytes.to_le_bytes());
    for path in &fresh.files {
        let file = fs::metadata(path).map_err(CheckpointError::read(path))?;
        for number in [file.dev(), file.ino(), file.len()] {
            hasher.update(&number.to_le_bytes());
        }
        for number in [file.ctime(), file.ctime_nsec()] {
            hasher.update(&number.to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// What a guest sees of the host's processor: model, stepping, microcode, features.
fn host_processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // The first of equal ones, without what changes from moment to moment.
    let first = info.split("\n\n").next().unwrap_or_default();
    let lasting = first.lines().filter(|line| !line.starts_with("cpu MHz"));
    blake3::hash(lasting.collect::<Vec<_>>().join("\n").as_bytes()).to_hex().to_string()
}

/// Digests of large files that seldom change, each computed once.
#[derive(Debug)]
pub(crate) struct FileDigests {
    cache: PathBuf,
    known: BTreeMap<PathBuf, Known>,
}

/// A digest, and the version of the file that has it: any write changes the time of the last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    device: u64,
    inode: u64,
    size_bytes: u64,
    /// Seconds and nanoseconds.
    changed: (i64, i64),
    digest: String,
}

/// Files remembered; more means that the cache is of no use any more and begins anew.
const KNOWN_MAX: usize = 64;

impl FileDigests {
    /// Remembers in the file `cache`, which need not exist.
    pub(crate) fn open(cache: &Path) -> Self {
        let known = fs::read(cache).ok().and_then(|json| serde_json::from_slice(&json).ok());
        Self { cache: cache.to_owned(), known: known.unwrap_or_default() }
    }

    fn of(&mut self, path: &Path) -> Result<String, CheckpointError> {
        let failed = CheckpointError::read(path);
        let data = fs::metadata(path).map_err(&failed)?;
        let mut now = Known {
            device: data.dev(),
            inode: data.ino(),
            size_bytes: data.len(),
            changed: (data.ctime(), data.ctime_nsec()),
            digest: String::new(),
        };
        if let Some(known) = self.known.get(path) {
            now.digest.clone_from(&known.digest);
            if now == *known {
                return Ok(now.digest);
            }
        }
        let mut hasher = blake3::Hasher::new();
        let file = fs::File::open(path).map_err(&failed)?;
        hasher.update_reader(file).map_err(&failed)?;
        now.digest = hasher.finalize().to_hex().to_string();
        let digest = now.digest.clone();
        if self.known.len() >= KNOWN_MAX {
            self.known.clear();
        }
        self.known.insert(path.to_owned(), now);
        self.keep();
        Ok(digest)
    }

    fn keep(&self) {
        if let Err(error) = crate::vmm::write_whole(&self.cache, &self.known) {
            // The next start computes them again.
            tracing::debug!(path = %self.cache.display(), %error, "could not keep digests");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_in_the_key_and_is_told_by_name() {
        let shape = Shape {
            kernel: "k".into(),
            initramfs: "i".into(),
            vmm: "v".into(),
            processor: "p".into(),
            machine: vec!["-m".into(), "512M".into()],
            root: "r".into(),
        };
        shape.check(&shape.clone()).unwrap();
        type Change = fn(&mut Shape);
        let changes: [(&str, Change); 6] = [
            ("guest kernel", |shape| shape.kernel.push('x')),
            ("agent", |shape| shape.initramfs.push('x')),
            ("VMM", |shape| shape.vmm.push('x')),
            ("processor", |shape| shape.processor.push('x')),
            ("set of devices", |shape| shape.machine[1] = "513M".into()),
            ("root file system", |shape| shape.root.push('x')),
        ];
        for (part, change) in changes {
            let mut other = shape.clone();
            change(&mut other);
            assert_ne!(other.key(), shape.key());
            let told = other.check(&shape).unwrap_err().to_string();
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn digest_is_remembered_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, file) = (dir.path().join("digests.json"), dir.path().join("file"));
        fs::write(&file, "one").unwrap();
        let first = FileDigests::open(&cache).of(&file).unwrap();
        assert_eq!(first, blake3::hash(b"one").to_hex().to_string());
        assert_eq!(FileDigests::open(&cache).of(&file).unwrap(), first);
        fs::write(&file, "two").unwrap();
        let second = FileDigests::open(&cache).of(&file).unwrap();
        assert_eq!(second, blake3::hash(b"two").to_hex().to_string());
    }
}
