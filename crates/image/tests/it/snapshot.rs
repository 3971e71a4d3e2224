//! Everything about a tree that a program in it could see, to be compared.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail};
use erofs_rs::EroFS;
use erofs_rs::backend::SliceImage;
use erofs_rs::types::Inode;
use microsandbox_image::{Digest, Image};

/// One name in a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Node {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) size: u64,
    pub(crate) content: Option<Digest>,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) device: Option<(u32, u32)>,
    pub(crate) xattrs: BTreeMap<String, String>,
    /// Number of names, and the first of them; nothing for directories.
    pub(crate) links: Option<(u64, Vec<u8>)>,
}

/// A tree by path, the root as an empty one.
pub(crate) type Snapshot = BTreeMap<Vec<u8>, Node>;

/// Compares and tells the first differences in full: two whole trees say nothing to a reader.
pub(crate) fn assert_same(actual: &Snapshot, expected: &Snapshot, what: &str) {
    let mut differences = differences(actual, expected);
    let count = differences.len();
    differences.truncate(12);
    assert!(count == 0, "{what}: {count} differences\n{}", differences.join("\n"));
}

/// What is not the same, a text for each path that begins with it.
pub(crate) fn differences(actual: &Snapshot, expected: &Snapshot) -> Vec<String> {
    let mut differences = Vec::new();
    for path in actual.keys().chain(expected.keys()) {
        let (actual, expected) = (actual.get(path), expected.get(path));
        if actual != expected {
            let path = String::from_utf8_lossy(path);
            differences.push(format!("{path}\n  is       {actual:?}\n  expected {expected:?}"));
        }
    }
    differences.sort();
    differences.dedup();
    differences
}

/// The tree of a directory on this host.
pub(crate) fn of_directory(root: &Path) -> Result<Snapshot> {
    let mut snapshot = Snapshot::new();
    let mut first_names = HashMap::new();
    let mut paths = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let metadata = fs::symlink_metadata(&full)?;
        let file_type = metadata.file_type();
        let mut node = Node {
            kind: '?',
            mode: metadata.permissions().mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), u32::try_from(metadata.mtime_nsec())?),
            size: 0,
            content: None,
            target: None,
            device: None,
            xattrs: xattrs(&full)?,
            links: None,
        };
        if file_type.is_dir() {
            node.kind = 'd';
            for entry in fs::read_dir(&full)? {
                let name = entry?.file_name().into_vec();
                paths.push(if path.is_empty() { name } else { [&*path, b"/", &*name].concat() });
            }
        } else if file_type.is_file() {
            node.kind = 'f';
            node.size = metadata.len();
            node.content = Some(Digest::of(&fs::read(&full)?));
        } else if file_type.is_symlink() {
            node.kind = 'l';
            node.target = Some(fs::read_link(&full)?.into_os_string().into_vec());
        } else {
            let device = metadata.rdev();
            node.kind = match file_type {
                t if t.is_char_device() => 'c',
                t if t.is_block_device() => 'b',
                t if t.is_fifo() => 'p',
                _ => 's',
            };
            if matches!(node.kind, 'c' | 'b') {
                let major = (device >> 8) & 0xfff;
                let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
                node.device = Some((u32::try_from(major)?, u32::try_from(minor)?));
            }
        }
        if node.kind != 'd' {
            node.links = Some((metadata.nlink(), Vec::new()));
            let first = first_names.entry(metadata.ino()).or_insert_with(|| path.clone());
            if path < *first {
                first.clone_from(&path);
            }
        }
        snapshot.insert(path, node);
    }
    for (path, node) in &mut snapshot {
        if let Some((_, first)) = &mut node.links {
            let inode = fs::symlink_metadata(root.join(OsStr::from_bytes(path)))?.ino();
            first.clone_from(&first_names[&inode]);
        }
    }
    Ok(snapshot)
}

/// The tree of an image, read by `erofs-rs` from the bytes that a machine would see.
pub(crate) fn of_image(image: &Image) -> Result<Snapshot> {
    let bytes = disk_bytes(image)?;
    let erofs = EroFS::new(SliceImage::new(&bytes))?;
    let mut snapshot = Snapshot::new();
    let mut first_names: HashMap<u64, Vec<u8>> = HashMap::new();
    let root = erofs.get_inode(erofs.super_block().root_inode_id())?;
    snapshot.insert(Vec::new(), node(&erofs, root)?);
    for entry in erofs.walk_dir("/")? {
        let entry = entry?;
        let path = entry.dir_entry.path();
        let path = path.as_bytes().strip_prefix(b"/").context("paths are absolute")?.to_vec();
        let first = first_names.entry(entry.inode.id()).or_insert_with(|| path.clone());
        if path < *first {
            first.clone_from(&path);
        }
        let mut node = node(&erofs, entry.inode)?;
        if let Some((_, first)) = &mut node.links {
            // The inode number for now: the first name is known at the end.
            *first = entry.inode.id().to_be_bytes().to_vec();
        }
        snapshot.insert(path, node);
    }
    for node in snapshot.values_mut() {
        if let Some((_, first)) = &mut node.links {
            let id = u64::from_be_bytes(first.as_slice().try_into()?);
            first.clone_from(&first_names[&id]);
        }
    }
    Ok(snapshot)
}

/// The whole disk: its parts, one after the other.
pub(crate) fn disk_bytes(image: &Image) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for extent in image.extents() {
        fs::File::open(&extent.path)?.read_to_end(&mut bytes)?;
    }
    anyhow::ensure!(bytes.len() as u64 == image.size_bytes());
    Ok(bytes)
}

fn node(erofs: &EroFS<SliceImage<'_>>, inode: Inode) -> Result<Node> {
    let file_type = inode.file_type();
    let kind = match file_type {
        t if t.is_dir() => 'd',
        t if t.is_file() => 'f',
        t if t.is_symlink() => 'l',
        t if t.is_char_device() => 'c',
        t if t.is_block_device() => 'b',
        t if t.is_fifo() => 'p',
        t if t.is_socket() => 's',
        _ => bail!("inode {} has no type", inode.id()),
    };
    let content = match kind {
        'f' => {
            let mut bytes = Vec::new();
            erofs.open_inode_file(inode)?.read_to_end(&mut bytes)?;
            Some(Digest::of(&bytes))
        }
        _ => None,
    };
    Ok(Node {
        kind,
        mode: inode.permissions().mode() & 0o7777,
        uid: inode.uid(),
        gid: inode.gid(),
        mtime: inode.modified_unix(),
        size: if kind == 'f' { inode.data_size() } else { 0 },
        content,
        target: match kind {
            'l' => Some(erofs.read_link_inode(inode)?.into_vec()),
            _ => None,
        },
        device: inode.device(),
        xattrs: erofs
            .xattrs_inode(inode)?
            .iter()
            .map(|(name, value)| readable(name, value))
            .collect(),
        links: (kind != 'd').then(|| (inode.nlink().into(), Vec::new())),
    })
}

fn xattrs(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for name in xattr::list(path)? {
        // What the host's own security module has put there says nothing about the image.
        if name == "security.selinux" {
            continue;
        }
        let value = xattr::get(path, &name)?.unwrap_or_default();
        let (name, value) = readable(name.as_bytes(), &value);
        found.insert(name, value);
    }
    Ok(found)
}

/// An attribute as a failed test should print it: a long value by its digest.
fn readable(name: &[u8], value: &[u8]) -> (String, String) {
    let value = match value.len() {
        0..64 => value.escape_ascii().to_string(),
        _ => Digest::of(value).to_string(),
    };
    (name.escape_ascii().to_string(), value)
}
