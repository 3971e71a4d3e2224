//! Root directories: a directory of this host becomes an image of one layer.
//!
//! It is packed as an archive that goes through the same pipeline as every other layer, so it has a diff id, a record and
//! the same checks. What is packed is what there is: names as bytes, owners, modes, times, extended attributes, hard
//! links, devices, holes. Sockets are left out, and so is what other file systems are mounted over.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, PipeWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use crate::layer::{self, Promise};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::progress::{Progress, PullProgress};
use crate::store::{Draft, ImageStore};
use crate::{DiffId, Digest, Error, Image, ImageConfig, Platform, Reference};

/// Archives before PAX cannot say more in their number fields.
const MAX_USTAR_SIZE: u64 = 0o777_7777_7777;

impl ImageStore {
    /// Makes an image of one layer from the directory `root` and calls it `name`. `config` says how it wants to be run;
    /// without a platform it is for this host. Blocks: run it where blocking is allowed.
    ///
    /// # Errors
    /// [`Error::ReadRootfs`], [`Error::Layer`], or what writing the store reports. The store is as it was then.
    pub fn load_directory(
        &self,
        root: &Path,
        name: &Reference,
        config: &ImageConfig,
        progress: &dyn Progress,
    ) -> Result<Image, Error> {
        let lease = self.lease()?;
        let (diff_id, size, is_new) = self.load_rootfs(root, name)?;
        progress.report(PullProgress::LayerMaterializeComplete { layer_index: 0, diff_id });
        progress.report(PullProgress::StitchStarted { layer_count: 1 });
        let mut config = config.clone();
        if config.os.is_empty() || config.architecture.is_empty() {
            let host = Platform::host_linux();
            (config.os, config.architecture, config.variant) =
                (host.os, host.architecture, host.variant);
        }
        let config = config.encode(&[diff_id]);
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
            layers: vec![Descriptor::new(OCI_LAYER, diff_id.0, size)],
            annotations: None,
        };
        let manifest = serde_json::to_vec(&manifest).expect("a manifest can be written as JSON");
        let draft = Draft { manifest: &manifest, config: &config, diff_ids: &[diff_id] };
        let published = self.publish(&draft, &lease).and_then(|image| {
            self.write_ref(name, image.digest())?;
            self.mark_used(&image.digest());
            self.complete_image(image.digest())
        });
        if published.is_err() && is_new {
            drop(lease);
            self.discard_layers(&[diff_id]);
        } else {
            let (reference, layer_count) = (name.clone(), 1);
            progress.report(PullProgress::Complete { reference, layer_count });
        }
        published
    }

    /// Makes the layer; answers with its diff id, its size, and whether it was not there before.
    fn load_rootfs(&self, root: &Path, name: &Reference) -> Result<(DiffId, u64, bool), Error> {
        let fault = |source| Error::ReadRootfs { path: root.to_owned(), source };
        let (input, output) = io::pipe().map_err(fault)?;
        let staged = self.stage_layer()?;
        let (packed, built) = thread::scope(|scope| {
            let packing = scope.spawn(move || Packer::new(output).pack(root));
            let built = layer::build(input, Promise::default(), staged.target(self), &|_| {});
            let packed = packing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            (packed, built)
        });
        let facts = match (packed, built) {
            // A builder that stops reading is why the packer cannot write.
            (Err(error), built) if built.is_ok() || !is_broken_pipe(&error) => return Err(error),
            (_, Ok(facts)) => facts,
            (_, Err(source)) => {
                let layer = Digest::of(name.to_string().as_bytes());
                return Err(Error::Layer { image: name.familiar(), layer, source: source.into() });
            }
        };
        let is_new = !self.has_layer(facts.diff_id);
        self.adopt_layer(staged, facts.diff_id)?;
        Ok((facts.diff_id, facts.blob_bytes, is_new))
    }
}

fn is_broken_pipe(error: &Error) -> bool {
    matches!(error, Error::ReadRootfs { source, .. }
        if source.kind() == io::ErrorKind::BrokenPipe)
}

/// Writes the archive.
struct Packer {
    archive: tar::Builder<io::BufWriter<PipeWriter>>,
    /// The first name of each inode that has several.
    first_names: HashMap<(u64, u64), PathBuf>,
}

impl Packer {
    fn new(output: PipeWriter) -> Self {
        let output = io::BufWriter::with_capacity(256 << 10, output);
        Self { archive: tar::Builder::new(output), first_names: HashMap::new() }
    }

    fn pack(mut self, root: &Path) -> Result<(), Error> {
        let fault = |path: &Path, source| Error::ReadRootfs { path: path.to_owned(), source };
        let metadata = fs::metadata(root).map_err(|source| fault(root, source))?;
        let device = metadata.dev();
        // Names below the root; of a directory's entries the last one is taken first.
        let mut waiting = vec![PathBuf::new()];
        while let Some(name) = waiting.pop() {
            let path = root.join(&name);
            let of_path = |source| fault(&path, source);
            let metadata = if name.as_os_str().is_empty() {
                fs::metadata(&path)
            } else {
                fs::symlink_metadata(&path)
            };
            let metadata = metadata.map_err(of_path)?;
            self.add(&path, &name, &metadata).map_err(of_path)?;
            if metadata.is_dir() && metadata.dev() == device {
                let mut names: Vec<PathBuf> = fs::read_dir(&path)
                    .and_then(|entries| {
                        entries
                            .map(|entry| Ok(name.join(entry?.file_name())))
                            .collect::<io::Result<_>>()
                    })
                    .map_err(of_path)?;
                // The same directory is the same image, in whatever order it is listed.
                names.sort_unstable_by(|a, b| b.cmp(a));
                waiting.extend(names);
            }
        }
        let end = self.archive.into_inner().and_then(|mut output| output.flush());
        end.map_err(|source| fault(root, source))
    }

    fn add(&mut self, path: &Path, name: &Path, metadata: &Metadata) -> io::Result<()> {
        use tar::EntryType;
        let file_type = metadata.file_type();
        if file_type.is_socket() {
            tracing::info!(path = %path.display(), "a socket is not packed");
            return Ok(());
        }
        let mut entry = Entry::new(name, metadata);
        if metadata.nlink() > 1 && !metadata.is_dir() {
            let inode = (metadata.dev(), metadata.ino());
            if let Some(first) = self.first_names.get(&inode) {
                entry.link(EntryType::Link, first.as_os_str());
                return entry.write(&mut self.archive, &mut io::empty());
            }
            self.first_names.insert(inode, name.to_owned());
        }
        for attribute in xattr::list(path)? {
            if let Some(value) = xattr::get(path, &attribute)? {
                entry.records.push(([b"SCHILY.xattr.", attribute.as_bytes()].concat(), value));
            }
        }
        match file_type {
            kind if kind.is_dir() => entry.header.set_entry_type(EntryType::Directory),
            kind if kind.is_symlink() => {
                entry.link(EntryType::Symlink, fs::read_link(path)?.as_os_str());
            }
            kind if kind.is_fifo() => entry.header.set_entry_type(EntryType::Fifo),
            kind if kind.is_block_device() => {
                entry.device(EntryType::Block, metadata.rdev())?;
            }
            kind if kind.is_char_device() => entry.device(EntryType::Char, metadata.rdev())?,
            _ => {
                // What took its place since it was looked at is not followed.
                let flags = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
                let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
                return entry.write_file(&mut self.archive, &file, metadata);
            }
        }
        entry.write(&mut self.archive, &mut io::empty())
    }
}

/// One entry: a header, and the records for what does not fit into it.
struct Entry {
    header: tar::Header,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    fn new(name: &Path, metadata: &Metadata) -> Self {
        let mut entry = Self { header: tar::Header::new_ustar(), records: Vec::new() };
        let name = if name.as_os_str().is_empty() { OsStr::new("./") } else { name.as_os_str() };
        entry.field(b"path", name.as_bytes());
        entry.header.set_entry_type(tar::EntryType::Regular);
        entry.header.set_mode(metadata.mode() & 0o7777);
        entry.header.set_size(0);
        for (key, id) in [(&b"uid"[..], metadata.uid()), (b"gid", metadata.gid())] {
            if id > 0o777_7777 {
                entry.records.push((key.to_vec(), id.to_string().into()));
            }
        }
        entry.header.set_uid(u64::from(metadata.uid() & 0o777_7777));
        entry.header.set_gid(u64::from(metadata.gid() & 0o777_7777));
        let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
        entry.header.set_mtime(u64::try_from(seconds).unwrap_or_default().min(MAX_USTAR_SIZE));
        if nanoseconds > 0 || !(0..=MAX_USTAR_SIZE.cast_signed()).contains(&seconds) {
            entry.records.push((b"mtime".to_vec(), decimal(seconds, nanoseconds).into()));
        }
        entry
    }

    /// Puts a name into the header, or into a record where it does not fit.
    fn field(&mut self, key: &[u8], value: &[u8]) {
        let Some(ustar) = self.header.as_ustar_mut() else { return };
        let field = if key == b"path" { &mut ustar.name } else { &mut ustar.linkname };
        if value.len() <= field.len() {
            field[..value.len()].copy_from_slice(value);
        } else {
            self.records.push((key.to_vec(), value.to_vec()));
        }
    }

    fn link(&mut self, kind: tar::EntryType, target: &OsStr) {
        self.header.set_entry_type(kind);
        self.field(b"linkpath", target.as_bytes());
    }

    fn device(&mut self, kind: tar::EntryType, device: u64) -> io::Result<()> {
        self.header.set_entry_type(kind);
        self.header.set_device_major(rustix::fs::major(device))?;
        self.header.set_device_minor(rustix::fs::minor(device))
    }

    /// A file as it is: with its holes, where it has some (GNU's PAX format 1.0).
    fn write_file(
        mut self,
        archive: &mut tar::Builder<impl Write>,
        file: &File,
        metadata: &Metadata,
    ) -> io::Result<()> {
        let size = metadata.len();
        let segments = segments(file, size)?;
        if matches!(segments[..], [(0, len)] if len == size) || size == 0 {
            self.set_size(size);
            return self.write(archive, &mut exactly(file, 0, size));
        }
        let mut map = format!("{}\n", segments.len());
        for (offset, len) in &segments {
            map += &format!("{offset}\n{len}\n");
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(512), 0);
        let real_size = size.to_string();
        for (key, value) in [("major", "1"), ("minor", "0"), ("realsize", real_size.as_str())] {
            self.records.push((format!("GNU.sparse.{key}").into(), value.into()));
        }
        let stored = segments.iter().map(|(_, len)| len).sum::<u64>() + map.len() as u64;
        self.set_size(stored);
        let data = segments.into_iter().map(|(offset, len)| exactly(file, offset, len));
        let mut data: Box<dyn Read + '_> =
            data.fold(Box::new(io::empty()), |before, next| Box::new(before.chain(next)));
        self.write(archive, &mut (&map[..]).chain(&mut data))
    }

    fn set_size(&mut self, size: u64) {
        self.header.set_size(size.min(MAX_USTAR_SIZE));
        if size > MAX_USTAR_SIZE {
            self.records.push((b"size".to_vec(), size.to_string().into()));
        }
    }

    fn write(
        mut self,
        archive: &mut tar::Builder<impl Write>,
        data: &mut dyn Read,
    ) -> io::Result<()> {
        if !self.records.is_empty() {
            let records: Vec<u8> =
                self.records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(tar::EntryType::XHeader);
            header.set_size(records.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            archive.append(&header, &records[..])?;
        }
        self.header.set_cksum();
        archive.append(&self.header, data)
    }
}

/// Where a file has data: offset and length, ascending. One piece at 0 where there are no holes.
fn segments(file: &File, size: u64) -> io::Result<Vec<(u64, u64)>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    let mut segments = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            // This file system knows no holes.
            Err(Errno::INVAL) => return Ok(vec![(0, size)]),
            Err(error) => return Err(error.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        segments.push((start, end.saturating_sub(start)));
        at = end.max(start + 1);
    }
    Ok(segments)
}

/// `len` bytes of a file; zeros in place of what is missing because the file has shrunk since it was looked at.
fn exactly(file: &File, offset: u64, len: u64) -> impl Read + '_ {
    use std::os::unix::fs::FileExt;
    struct At<'a>(&'a File, u64);
    impl Read for At<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.read_at(buffer, self.1)?;
            self.1 += count as u64;
            Ok(count)
        }
    }
    At(file, offset).chain(io::repeat(0)).take(len)
}

/// A PAX record: its own length, key and value.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key, b"=", value, b"\n"].concat();
    let mut length = rest.len() + 1;
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

/// Seconds and nanoseconds as a decimal number.
fn decimal(seconds: i64, nanoseconds: i64) -> String {
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (0.., nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
        // -1.75 is two seconds before the epoch and a quarter on.
        (..0, nanoseconds) => {
            format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
        }
    }
}
