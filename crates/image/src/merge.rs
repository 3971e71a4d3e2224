//! Merging: the trees of layers, lowest first, become the one tree that the image is.
//!
//! The judge is what `umoci unpack` leaves on a disk: a later layer replaces, describes again, or removes what
//! earlier ones brought, and a directory that a layer only passes through keeps its attributes.

use crate::tar::display_name;
use crate::tree::{Inode, InodeId, Kind, Missing, Part, PathFault, Tree, components};

/// An entry of a layer that cannot be laid over what is below.
#[derive(Debug)]
pub(crate) struct Misfit {
    pub(crate) entry: String,
    pub(crate) reason: &'static str,
}

/// The tree of the layers applied so far.
#[derive(Debug)]
pub(crate) struct Merger {
    tree: Tree,
}

impl Merger {
    pub(crate) fn new() -> Self {
        Self { tree: Tree::new() }
    }

    /// Lays `layer` over what is there; its files lie in `part`.
    pub(crate) fn apply(&mut self, layer: Tree, part: Part) -> Result<(), Misfit> {
        let mut pass = Pass { below: &mut self.tree, moved: vec![None; layer.len()], layer, part };
        pass.resolve_links_below()?;
        pass.run();
        Ok(())
    }

    pub(crate) fn into_tree(self) -> Tree {
        let mut tree = self.tree;
        if let Some(root) = tree.directory_mut(Tree::ROOT) {
            root.implied = false;
        }
        tree
    }
}

/// One layer being applied.
struct Pass<'a> {
    below: &'a mut Tree,
    layer: Tree,
    part: Part,
    /// By inode of the layer: what it has become, so that hard links stay links.
    moved: Vec<Option<InodeId>>,
}

/// A directory of the layer and the directory it is laid over.
struct Pair {
    layer: InodeId,
    below: InodeId,
}

impl Pass<'_> {
    /// Finds the targets of links into the layers below, before this layer changes anything there.
    fn resolve_links_below(&mut self) -> Result<(), Misfit> {
        for (index, moved) in self.moved.iter_mut().enumerate() {
            let id = InodeId(u32::try_from(index).unwrap_or(u32::MAX));
            let Kind::LinkBelow(target) = &self.layer.inode(id).kind else { continue };
            let misfit = |reason| Misfit { entry: display_name(target), reason };
            let path: Vec<&[u8]> = components(target).collect();
            let (name, parents) =
                path.split_last().ok_or_else(|| misfit("is a hard link to nothing"))?;
            let found = self
                .below
                .walk(Tree::ROOT, &parents.join(&b'/'), Missing::Fail)
                .ok()
                .and_then(|directory| self.below.lookup(directory, name))
                .ok_or_else(|| misfit("is the target of a hard link but does not exist"))?;
            if self.below.inode(found).is_directory() {
                return Err(misfit("is the target of a hard link but is a directory"));
            }
            *moved = Some(found);
        }
        Ok(())
    }

    fn run(&mut self) {
        self.lay_directory(Tree::ROOT, Tree::ROOT);
        let mut pairs = vec![Pair { layer: Tree::ROOT, below: Tree::ROOT }];
        while let Some(pair) = pairs.pop() {
            let Some(directory) = self.layer.directory_mut(pair.layer) else { continue };
            for (name, id) in std::mem::take(&mut directory.entries) {
                if let Some(below) = self.lay(pair.below, &name, id) {
                    pairs.push(Pair { layer: id, below });
                }
            }
        }
    }

    /// Lays one entry over `directory`; answers with the directory its own entries belong in, if it is one.
    fn lay(&mut self, directory: InodeId, name: &[u8], id: InodeId) -> Option<InodeId> {
        if let Some(moved) = self.moved[id.0 as usize] {
            // Another name of what has been laid already, or a link to something below.
            self.below.link(directory, name, moved);
            return None;
        }
        match &self.layer.inode(id).kind {
            Kind::Whiteout => {
                self.below.unlink(directory, name);
                None
            }
            Kind::Directory(upper)
                if upper.implied
                    && self.below.lookup(directory, name).is_none()
                    && self.only_removes(id) =>
            {
                // Removing what is not there must not make the way to it.
                None
            }
            Kind::Directory(upper) => {
                let place = self.place_directory(directory, name, upper.implied);
                self.lay_directory(id, place);
                Some(place)
            }
            _ => {
                let target = self.take(id);
                self.below.link(directory, name, target);
                None
            }
        }
    }

    /// Whether a layer's directory holds nothing but whiteouts and the way to them.
    fn only_removes(&self, id: InodeId) -> bool {
        self.layer.directory(id).is_some_and(|directory| {
            directory.implied
                && directory.entries.values().all(|entry| {
                    matches!(self.layer.inode(*entry).kind, Kind::Whiteout)
                        || self.only_removes(*entry)
                })
        })
    }

    /// The directory that a layer's directory of this name is laid over: what is there, or a new one.
    fn place_directory(&mut self, directory: InodeId, name: &[u8], implied: bool) -> InodeId {
        let existing = self.below.lookup(directory, name);
        if let Some(id) = existing.filter(|id| self.below.inode(*id).is_directory()) {
            return id;
        }
        if existing.is_some() && implied {
            // The layer only passes through: `lib/x` over `lib -> usr/lib` lands in `usr/lib`.
            let followed = self.below.walk(directory, name, Missing::Create);
            if let Ok(id) = followed {
                return id;
            }
            debug_assert!(!matches!(followed, Err(PathFault::Missing)), "the walk creates");
        }
        let id = self.below.add(Inode::implied_directory(directory));
        self.below.link(directory, name, id);
        id
    }

    /// Takes over what the layer says about the directory itself.
    fn lay_directory(&mut self, upper: InodeId, below: InodeId) {
        let inode = self.layer.inode_mut(upper);
        let Kind::Directory(marks) = &inode.kind else { return };
        let (opaque, implied) = (marks.opaque, marks.implied);
        let target = self.below.inode_mut(below);
        if !implied {
            target.attributes = inode.attributes;
            target.xattrs = std::mem::take(&mut inode.xattrs);
        }
        if let Kind::Directory(directory) = &mut target.kind {
            directory.implied = false;
            directory.opaque = false;
            if opaque {
                directory.entries.clear();
            }
        }
    }

    /// Moves an inode over, and remembers where for its other names.
    fn take(&mut self, id: InodeId) -> InodeId {
        let inode = self.layer.inode_mut(id);
        let kind = std::mem::replace(&mut inode.kind, Kind::Whiteout);
        let kind = match kind {
            Kind::File(data) => Kind::File(crate::tree::FileData { part: self.part, ..data }),
            other => other,
        };
        let moved = self.below.add(Inode {
            attributes: inode.attributes,
            xattrs: std::mem::take(&mut inode.xattrs),
            kind,
        });
        self.moved[id.0 as usize] = Some(moved);
        moved
    }
}

#[cfg(test)]
mod tests;
