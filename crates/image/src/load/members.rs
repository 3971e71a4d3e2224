//! Members: documents and layers of an archive by name, however the archive comes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::{ArchiveSource, origin};
use crate::error::LayerError;
use crate::layer::{self, Facts, Promise};
use crate::manifest::MAX_CONFIG_BYTES;
use crate::store::StagedLayer;
use crate::tar::{EntryKind, Reader};
use crate::{Cause, Digest, Error, ImageStore};

/// Longest chain of links between members; `docker save` once wrote one link for a repeated layer.
const MAX_LINK_HOPS: usize = 8;

/// Most bytes of documents kept from a stream, all together.
const MAX_KEPT_BYTES: u64 = 64 << 20;

/// Most members of an archive that is read by name.
const MAX_MEMBERS: u64 = 1 << 20;

/// A layer of an archive.
pub(super) enum Layer {
    /// Its blob, to be read.
    Readable { input: Box<dyn Read + Send>, size: u64 },
    /// Already made, while the stream passed; or why it could not be.
    Made(Result<(StagedLayer, Facts), LayerError>),
}

/// The table of contents.
pub(super) struct Members {
    origin: PathBuf,
    place: Place,
}

enum Place {
    Directory(PathBuf),
    File { path: PathBuf, table: Table<Span> },
    Stream { table: Table<Passed> },
}

/// Members by normalised name, and links between them.
struct Table<T> {
    members: HashMap<String, T>,
    links: HashMap<String, String>,
}

/// Where a member lies in an archive file.
struct Span {
    offset: u64,
    size: u64,
}

/// What is left of a member of a stream.
enum Passed {
    Document(Vec<u8>),
    Layer { size: u64, made: Option<Result<(StagedLayer, Facts), LayerError>> },
}

impl Members {
    /// Looks through `source`. A stream is read to its end, and what may be a layer is made in `store`.
    pub(super) fn open(source: ArchiveSource, store: &ImageStore) -> Result<Self, Error> {
        let path = match source {
            ArchiveSource::Stream(stream) => return Self::from_stream(stream, None, store),
            ArchiveSource::Path(path) => path,
        };
        let fault = |source: io::Error| read_fault(&path, source);
        if path.is_dir() {
            return Ok(Self { origin: path.clone(), place: Place::Directory(path) });
        }
        let mut file = File::open(&path).map_err(fault)?;
        let mut magic = [0; 4];
        let count = file.read(&mut magic).map_err(fault)?;
        file.rewind().map_err(fault)?;
        match magic[..count] {
            // A compressed archive has no places to go back to: it is a stream in a file.
            [0x1f, 0x8b, ..] => {
                let stream = flate2::bufread::MultiGzDecoder::new(BufReader::new(file));
                Self::from_stream(Box::new(stream), Some(&path), store)
            }
            [0x28, 0xb5, 0x2f, 0xfd] => {
                let stream = zstd::stream::read::Decoder::new(file).map_err(fault)?;
                Self::from_stream(Box::new(stream), Some(&path), store)
            }
            _ => Self::from_file(file, path),
        }
    }

    /// The archive's path; `-` for a stream.
    pub(super) fn origin(&self) -> &Path {
        &self.origin
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        match &self.place {
            Place::Directory(root) => root.join(name).is_file(),
            Place::File { table, .. } => table.find(name).is_some(),
            Place::Stream { table } => table.find(name).is_some(),
        }
    }

    /// The bytes of a member that has to fit into memory.
    pub(super) fn document(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let too_large = || Error::ArchiveMemberTooLarge {
            archive: self.origin.clone(),
            member: name.to_owned(),
            limit,
        };
        if self.size(name)? > limit {
            return Err(too_large());
        }
        if let Place::Stream { table } = &self.place {
            return match table.find(name) {
                Some((_, Passed::Document(bytes))) => Ok(bytes.clone()),
                _ => Err(too_large()),
            };
        }
        let (input, _) = self.reader(name)?;
        let mut bytes = Vec::new();
        input.take(limit + 1).read_to_end(&mut bytes).map_err(|source| self.fault(source))?;
        if bytes.len() as u64 > limit { Err(too_large()) } else { Ok(bytes) }
    }

    /// Bytes that a member takes in the archive.
    pub(super) fn size(&self, name: &str) -> Result<u64, Error> {
        let size = match &self.place {
            Place::Directory(root) => {
                let path = inside(root, name).ok_or_else(|| self.missing(name))?;
                path.metadata().ok().map(|metadata| metadata.len())
            }
            Place::File { table, .. } => table.find(name).map(|(_, span)| span.size),
            Place::Stream { table } => table.find(name).map(|(_, passed)| match passed {
                Passed::Document(bytes) => bytes.len() as u64,
                Passed::Layer { size, .. } => *size,
            }),
        };
        size.ok_or_else(|| self.missing(name))
    }

    /// A layer; one that was made from a stream can be taken once.
    pub(super) fn take_layer(&mut self, name: &str) -> Result<Layer, Error> {
        let missing = self.missing(name);
        if let Place::Stream { table } = &mut self.place {
            let real = table.find(name).map(|(real, _)| real).ok_or(missing)?;
            return match table.members.get_mut(&real) {
                Some(Passed::Layer { made, .. }) => made.take().map(Layer::Made),
                Some(Passed::Document(bytes)) => Some(Layer::Readable {
                    size: bytes.len() as u64,
                    input: Box::new(Cursor::new(bytes.clone())),
                }),
                None => None,
            }
            .ok_or_else(|| self.missing(name));
        }
        let (input, size) = self.reader(name)?;
        Ok(Layer::Readable { input, size })
    }

    fn from_file(file: File, path: PathBuf) -> Result<Self, Error> {
        let fault = |source: Cause| Error::ReadArchive { archive: path.clone(), source };
        let mut reader = Reader::new(BufReader::new(file));
        let mut table = Table::new();
        while let Some(entry) = reader.next_entry().map_err(|source| fault(source.into()))? {
            if reader.entries() > MAX_MEMBERS {
                let too_much = LayerError::TooMuch { what: "members", limit: MAX_MEMBERS };
                return Err(fault(too_much.into()));
            }
            let offset = reader.offset();
            let skipped = i64::try_from(reader.pass_over_data()).map_err(|e| fault(e.into()))?;
            reader.input_mut().seek_relative(skipped).map_err(|source| fault(source.into()))?;
            match entry.kind {
                EntryKind::File => table.add(&entry.name, Span { offset, size: entry.size }),
                EntryKind::Symlink | EntryKind::HardLink => table.add_link(&entry),
                _ => {}
            }
        }
        Ok(Self { origin: path.clone(), place: Place::File { path, table } })
    }

    fn from_stream(
        stream: Box<dyn Read + Send>,
        path: Option<&Path>,
        store: &ImageStore,
    ) -> Result<Self, Error> {
        let fault = |source: LayerError| Error::ReadArchive {
            archive: origin(path),
            source: source.into(),
        };
        let mut reader = Reader::new(BufReader::with_capacity(256 << 10, stream));
        let mut table = Table::new();
        let mut kept = 0;
        while let Some(entry) = reader.next_entry().map_err(fault)? {
            let limits = [
                (reader.entries(), MAX_MEMBERS, "members"),
                (kept, MAX_KEPT_BYTES, "bytes of documents"),
            ];
            if let Some((_, limit, what)) =
                limits.into_iter().find(|(count, limit, _)| count > limit)
            {
                return Err(fault(LayerError::TooMuch { what, limit }));
            }
            match entry.kind {
                EntryKind::File => {
                    let passed = pass(&mut reader, &entry, store, &fault)?;
                    if let Passed::Document(bytes) = &passed {
                        kept += bytes.len() as u64;
                    }
                    table.add(&entry.name, passed);
                }
                EntryKind::Symlink | EntryKind::HardLink => table.add_link(&entry),
                _ => {}
            }
        }
        Ok(Self { origin: origin(path), place: Place::Stream { table } })
    }

    fn reader(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64), Error> {
        let size = self.size(name)?;
        let open = |path: &Path| File::open(path).map_err(|source| self.fault(source));
        match &self.place {
            Place::Directory(root) => {
                let path = inside(root, name).ok_or_else(|| self.missing(name))?;
                Ok((Box::new(open(&path)?), size))
            }
            Place::File { path, table } => {
                let (_, span) = table.find(name).ok_or_else(|| self.missing(name))?;
                let mut file = open(path)?;
                file.seek(SeekFrom::Start(span.offset)).map_err(|source| self.fault(source))?;
                Ok((Box::new(file.take(span.size)), size))
            }
            Place::Stream { .. } => Err(self.missing(name)),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::ArchiveMember { archive: self.origin.clone(), member: name.to_owned() }
    }

    fn fault(&self, source: io::Error) -> Error {
        read_fault(&self.origin, source)
    }
}

/// Keeps a document, or makes a layer, of the member that is passing.
fn pass<R: BufRead + Send>(
    reader: &mut Reader<R>,
    entry: &crate::tar::Entry,
    store: &ImageStore,
    fault: &dyn Fn(LayerError) -> Error,
) -> Result<Passed, Error> {
    let name = normal(&entry.name);
    let small = entry.size <= MAX_CONFIG_BYTES;
    let first = reader.peek().map_err(fault)?;
    // A document starts with a brace or a bracket; so might an archive whose first file is named like that, which
    // is why small members of either kind are kept as they are, to be read as what the manifest calls them.
    if small && (entry.size < 64 << 10 || matches!(first, Some(b'{' | b'['))) {
        return reader.read_small(entry, MAX_CONFIG_BYTES).map(Passed::Document).map_err(fault);
    }
    let blob = name
        .as_deref()
        .and_then(|name| name.strip_prefix("blobs/sha256/"))
        .and_then(|hex| format!("sha256:{hex}").parse::<Digest>().ok());
    let promise = Promise { blob: blob.map(|digest| (digest, entry.size)), diff_id: None };
    let staged = store.stage_layer()?;
    // What turns out to be no layer may be something that no manifest names; who asks for it gets the fault.
    let made = layer::build(reader.data(), promise, staged.target(store), &|_| {});
    Ok(Passed::Layer { size: entry.size, made: Some(made.map(|facts| (staged, facts))) })
}

impl<T> Table<T> {
    fn new() -> Self {
        Self { members: HashMap::new(), links: HashMap::new() }
    }

    fn add(&mut self, name: &[u8], member: T) {
        self.members.extend(normal(name).map(|name| (name, member)));
    }

    fn add_link(&mut self, entry: &crate::tar::Entry) {
        let Some(name) = normal(&entry.name) else { return };
        let mut target = entry.link.clone();
        if entry.kind == EntryKind::Symlink {
            let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
            target = [directory.as_bytes(), b"/", &target].concat();
        }
        self.links.extend(normal(&target).map(|target| (name, target)));
    }

    /// The member of this name, through links, and the name it really has.
    fn find(&self, name: &str) -> Option<(String, &T)> {
        let mut name = normal(name.as_bytes())?;
        for _ in 0..MAX_LINK_HOPS {
            if let Some(member) = self.members.get(&name) {
                return Some((name, member));
            }
            name = self.links.get(&name)?.clone();
        }
        None
    }
}

/// A member's name without `.` and `..`; `None` when it would leave the archive.
fn normal(name: &[u8]) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in str::from_utf8(name).ok()?.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// `name` beneath `root`, unless it would leave it.
fn inside(root: &Path, name: &str) -> Option<PathBuf> {
    let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    plain.then(|| root.join(name))
}

fn read_fault(path: &Path, source: io::Error) -> Error {
    Error::ReadArchive { archive: path.to_owned(), source: source.into() }
}
