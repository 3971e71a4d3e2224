//! Trees of inodes: what a layer or an image holds, apart from the bytes of its files.
//!
//! Names are bytes. Nothing here exists on the host's file system: a path is walked in this tree alone, so
//! the worst that a hostile name or link can reach is another place of its own image.

use std::collections::{BTreeMap, VecDeque};

/// Deepest chain of symbolic links that is followed; Linux's own limit.
const MAX_LINK_HOPS: usize = 40;

/// Deepest directory; far above any real tree, and it bounds what a hostile one costs.
pub(crate) const MAX_DEPTH: usize = 1024;

/// Position of an inode in its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct InodeId(pub(crate) u32);

/// Owner, permissions and modification time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attributes {
    /// Permission bits with setuid, setgid and sticky; no file type.
    pub(crate) permissions: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) modified: Timestamp,
}

impl Attributes {
    /// What a directory gets that no archive entry describes: the same on every machine.
    pub(crate) const IMPLIED: Self =
        Self { permissions: 0o755, uid: 0, gid: 0, modified: Timestamp::from_seconds(0) };
}

/// Seconds since the epoch (negative before it) and nanoseconds within that second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timestamp {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl Timestamp {
    pub(crate) const fn from_seconds(seconds: i64) -> Self {
        Self { seconds, nanoseconds: 0 }
    }

    /// Reads a decimal number of seconds such as `-1.5`; digits beyond nanoseconds are dropped.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let text = str::from_utf8(text).ok()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || whole.starts_with('+') {
            return None;
        }
        let seconds: i64 = whole.parse().ok()?;
        let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
        let nanoseconds: u32 = digits.parse().ok()?;
        if whole.starts_with('-') && nanoseconds > 0 {
            let seconds = seconds.checked_sub(1)?;
            return Some(Self { seconds, nanoseconds: 1_000_000_000 - nanoseconds });
        }
        Some(Self { seconds, nanoseconds })
    }
}

/// One extended attribute; the name carries its namespace (`user.`, `security.`, …).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Xattr {
    pub(crate) name: Box<[u8]>,
    pub(crate) value: Box<[u8]>,
}

impl Xattr {
    pub(crate) fn new(name: &[u8], value: &[u8]) -> Self {
        Self { name: name.into(), value: value.into() }
    }
}

/// Major and minor number of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) major: u32,
    pub(crate) minor: u32,
}

/// Where the bytes of a file lie: which part of the disk, and its first block there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileData {
    pub(crate) size: u64,
    pub(crate) part: Part,
    pub(crate) block: u32,
}

/// A part of a disk by its position: the layers of an image in order; a layer's own tree knows only part 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part(pub(crate) u16);

/// A directory. The two marks have a meaning in a layer only and are gone once layers are merged.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: InodeId,
    pub(crate) entries: BTreeMap<Box<[u8]>, InodeId>,
    /// Hides what the layers below have in the directory at this path.
    pub(crate) opaque: bool,
    /// No archive entry describes it: attributes of the layers below stay.
    pub(crate) implied: bool,
}

#[derive(Debug)]
pub(crate) enum Kind {
    BlockDevice(Device),
    CharDevice(Device),
    Directory(Directory),
    Fifo,
    File(FileData),
    /// A hard link whose target is not in this layer: the path to look for in the layers below.
    LinkBelow(Box<[u8]>),
    Socket,
    Symlink(Box<[u8]>),
    /// Removes what the layers below have under this name.
    Whiteout,
}

#[derive(Debug)]
pub(crate) struct Inode {
    pub(crate) attributes: Attributes,
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) kind: Kind,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PathFault {
    Missing,
    NotADirectory,
    TooDeep,
    TooManyLinks,
}

/// What a walk does about a directory that is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Fail,
}

/// Inodes by id; the root is the first. Several names may lead to one inode; unreachable inodes may remain.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
}

impl Tree {
    pub(crate) const ROOT: InodeId = InodeId(0);

    /// A tree of one implied root directory.
    pub(crate) fn new() -> Self {
        Self { inodes: vec![Inode::implied_directory(Self::ROOT)] }
    }

    pub(crate) fn len(&self) -> usize {
        self.inodes.len()
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id.0 as usize]
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id.0 as usize]
    }

    pub(crate) fn directory(&self, id: InodeId) -> Option<&Directory> {
        match &self.inode(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    pub(crate) fn lookup(&self, directory: InodeId, name: &[u8]) -> Option<InodeId> {
        self.directory(directory)?.entries.get(name).copied()
    }

    /// Adds `inode` to the tree without a name.
    pub(crate) fn add(&mut self, inode: Inode) -> InodeId {
        let id = u32::try_from(self.inodes.len()).expect("entry counts are limited far below 2^32");
        self.inodes.push(inode);
        InodeId(id)
    }

    /// Gives an inode a name; whatever had that name loses it.
    pub(crate) fn link(&mut self, directory: InodeId, name: &[u8], id: InodeId) {
        if let Some(child) = self.directory_mut(id) {
            child.parent = directory;
        }
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.insert(name.into(), id);
        }
    }

    pub(crate) fn unlink(&mut self, directory: InodeId, name: &[u8]) {
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.remove(name);
        }
    }

    /// Walks `path` from `start` through directories and symbolic links to a directory.
    ///
    /// `..` stops at the root, as in a chroot. With [`Missing::Create`], absent directories are made (implied).
    pub(crate) fn walk(
        &mut self,
        start: InodeId,
        path: &[u8],
        missing: Missing,
    ) -> Result<InodeId, PathFault> {
        let mut at = start;
        let mut rest: VecDeque<Box<[u8]>> = components(path).map(Box::from).collect();
        let mut hops = 0;
        while let Some(name) = rest.pop_front() {
            let directory = self.directory(at).ok_or(PathFault::NotADirectory)?;
            if *name == *b".." {
                at = directory.parent;
                continue;
            }
            let next = directory.entries.get(&name).copied();
            match next.map(|id| (id, &self.inode(id).kind)) {
                Some((id, Kind::Directory(_))) => at = id,
                Some((_, Kind::Symlink(target))) => {
                    hops += 1;
                    if hops > MAX_LINK_HOPS || rest.len() > MAX_DEPTH {
                        return Err(PathFault::TooManyLinks);
                    }
                    if target.starts_with(b"/") {
                        at = Self::ROOT;
                    }
                    for component in components(target).rev() {
                        rest.push_front(component.into());
                    }
                }
                Some((_, Kind::Whiteout)) | None if missing == Missing::Create => {
                    let mut made = Inode::implied_directory(at);
                    if let (Kind::Directory(made), Some(_)) = (&mut made.kind, next) {
                        // The whiteout has removed what was below, attributes and all.
                        (made.opaque, made.implied) = (true, false);
                    }
                    let id = self.add(made);
                    self.link(at, &name, id);
                    at = id;
                }
                Some((_, Kind::Whiteout)) | None => return Err(PathFault::Missing),
                Some(_) => return Err(PathFault::NotADirectory),
            }
        }
        if self.depth(at) > MAX_DEPTH { Err(PathFault::TooDeep) } else { Ok(at) }
    }

    fn depth(&self, mut id: InodeId) -> usize {
        let mut depth = 0;
        while let Some(directory) = self.directory(id).filter(|_| id != Self::ROOT) {
            depth += 1;
            id = directory.parent;
        }
        depth
    }
}

impl Inode {
    pub(crate) fn implied_directory(parent: InodeId) -> Self {
        Self {
            attributes: Attributes::IMPLIED,
            xattrs: Vec::new(),
            kind: Kind::Directory(Directory {
                parent,
                entries: BTreeMap::new(),
                opaque: false,
                implied: true,
            }),
        }
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }
}

/// The names in a path; empty ones and `.` mean nothing.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symlink(target: &[u8]) -> Inode {
        Inode {
            attributes: Attributes::IMPLIED,
            xattrs: Vec::new(),
            kind: Kind::Symlink(target.into()),
        }
    }

    #[test]
    fn a_walk_follows_links_and_never_leaves_the_root() {
        let mut tree = Tree::new();
        let usr_lib = tree.walk(Tree::ROOT, b"usr/lib", Missing::Create).unwrap();
        for (name, target) in [
            (&b"lib"[..], &b"usr/lib"[..]),
            (b"escape", b"../../../../usr"),
            (b"absolute", b"/usr/./lib/"),
            (b"loop", b"loop"),
            (b"dangling", b"not/there"),
        ] {
            let id = tree.add(symlink(target));
            tree.link(Tree::ROOT, name, id);
        }
        let usr = tree.walk(Tree::ROOT, b"usr", Missing::Fail).unwrap();
        for (path, expected) in [
            (&b"lib"[..], Ok(usr_lib)),
            (b"absolute/../lib", Ok(usr_lib)),
            (b"escape", Ok(usr)),
            (b"../../usr", Ok(usr)),
            (b"loop/x", Err(PathFault::TooManyLinks)),
            (b"dangling", Err(PathFault::Missing)),
            (b"nowhere/x", Err(PathFault::Missing)),
            (b"", Ok(Tree::ROOT)),
        ] {
            assert_eq!(tree.walk(Tree::ROOT, path, Missing::Fail), expected, "{path:?}");
        }
        let made = tree.walk(Tree::ROOT, b"dangling/deeper", Missing::Create).unwrap();
        assert_eq!(tree.walk(Tree::ROOT, b"not/there/deeper", Missing::Fail), Ok(made));
    }

    #[test]
    fn a_path_deeper_than_the_limit_is_refused() {
        let mut tree = Tree::new();
        let deep = vec!["d"; MAX_DEPTH + 1].join("/");
        assert_eq!(
            tree.walk(Tree::ROOT, deep.as_bytes(), Missing::Create),
            Err(PathFault::TooDeep)
        );
    }

    #[test]
    fn times_are_read_to_the_nanosecond_on_both_sides_of_the_epoch() {
        for (text, expected) in [
            ("0", Some((0, 0))),
            ("1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            ("1.5", Some((1, 500_000_000))),
            ("1.0000000019", Some((1, 1))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("", None),
            ("+1", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ] {
            let parsed = Timestamp::parse(text.as_bytes()).map(|t| (t.seconds, t.nanoseconds));
            assert_eq!(parsed, expected, "{text}");
        }
    }
}
