//! Rules of merging that no archive made by a tool shows alone.

use super::*;
use crate::tree::{Attributes, FileData};

/// Builds a layer from lines: `path` is a file, `path/` a described directory, `-path` a whiteout, `!path/` an opaque
/// directory, `path -> target` a link, `path => target` a hard link to something below.
fn layer(lines: &[&str]) -> Tree {
    let mut tree = Tree::new();
    for line in lines {
        let (mark, line) = match line.as_bytes()[0] {
            mark @ (b'-' | b'!') => (Some(mark), &line[1..]),
            _ => (None, *line),
        };
        let (path, kind) = if let Some((path, target)) = line.split_once(" -> ") {
            (path, Kind::Symlink(target.as_bytes().into()))
        } else if let Some((path, target)) = line.split_once(" => ") {
            (path, Kind::LinkBelow(target.as_bytes().into()))
        } else if mark == Some(b'-') {
            (line, Kind::Whiteout)
        } else {
            (line, Kind::File(FileData { size: 1, part: Part(0), block: 8 }))
        };
        if let Some(path) = path.strip_suffix('/') {
            let id = tree.walk(Tree::ROOT, path.as_bytes(), Missing::Create).unwrap();
            tree.inode_mut(id).attributes.uid = 7;
            let directory = tree.directory_mut(id).unwrap();
            directory.opaque = mark == Some(b'!');
            directory.implied = false;
            continue;
        }
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = tree.walk(Tree::ROOT, parent.as_bytes(), Missing::Create).unwrap();
        let id = tree.add(Inode { attributes: Attributes::IMPLIED, xattrs: Vec::new(), kind });
        tree.link(parent, name.as_bytes(), id);
    }
    tree
}

fn merged(layers: &[&[&str]]) -> Result<Tree, Misfit> {
    let mut merger = Merger::new();
    for (index, lines) in layers.iter().enumerate() {
        merger.apply(layer(lines), Part(u16::try_from(index).unwrap()))?;
    }
    Ok(merger.into_tree())
}

/// Paths in order; described directories end in `/7`, files tell the layer they come from.
fn listing(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rest = vec![(String::new(), Tree::ROOT)];
    while let Some((path, id)) = rest.pop() {
        let Some(directory) = tree.directory(id) else { continue };
        for (name, child) in &directory.entries {
            let path = format!("{path}{}", String::from_utf8_lossy(name));
            match &tree.inode(*child).kind {
                Kind::Directory(_) => {
                    lines.push(format!("{path}/{}", tree.inode(*child).attributes.uid));
                    rest.push((format!("{path}/"), *child));
                }
                Kind::File(data) => lines.push(format!("{path} from {}", data.part.0)),
                Kind::Symlink(target) => {
                    lines.push(format!("{path} -> {}", String::from_utf8_lossy(target)));
                }
                other => lines.push(format!("{path} {other:?}")),
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn layers_are_laid_over_one_another_by_the_rules() {
    for (what, layers, expected) in [
        ("a later file wins", vec![&["a"][..], &["a"]], vec!["a from 1"]),
        (
            "an implied directory keeps what it was",
            vec![&["d/", "d/x"], &["d/y"]],
            vec!["d/7", "d/x from 0", "d/y from 1"],
        ),
        ("a described one is described again", vec![&["d/x"], &["d/"]], vec!["d/7", "d/x from 0"]),
        ("a whiteout removes a tree", vec![&["d/x", "d/e/y", "z"], &["-d"]], vec!["z from 0"]),
        (
            "a whiteout of nothing makes nothing",
            vec![&["z"], &["-no/such/thing"]],
            vec!["z from 0"],
        ),
        (
            "an opaque directory keeps its own",
            vec![&["d/", "d/x"], &["!d/", "d/y"]],
            vec!["d/7", "d/y from 1"],
        ),
        ("a file takes a directory's place", vec![&["d/x"], &["d"]], vec!["d from 1"]),
        ("and a directory a file's", vec![&["d"], &["d/", "d/x"]], vec!["d/7", "d/x from 1"]),
        (
            "a way through a link is followed",
            vec![&["usr/lib/a", "lib -> usr/lib"], &["lib/b"]],
            vec!["lib -> usr/lib", "usr/0", "usr/lib/0", "usr/lib/a from 0", "usr/lib/b from 1"],
        ),
        (
            "a described directory replaces a link",
            vec![&["usr/x", "lib -> usr"], &["lib/"]],
            vec!["lib/7", "usr/0", "usr/x from 0"],
        ),
        (
            "a link out of the root stays in it",
            vec![&["up -> ../../.."], &["up/x"]],
            vec!["up -> ../../..", "x from 1"],
        ),
        ("a circle of links gives way", vec![&["l -> l"], &["l/x"]], vec!["l/0", "l/x from 1"]),
        ("an empty layer changes nothing", vec![&["a"], &[], &["b"]], vec!["a from 0", "b from 2"]),
    ] {
        assert_eq!(listing(&merged(&layers).unwrap()), expected, "{what}");
    }
}

#[test]
fn links_into_lower_layers_are_the_same_file() {
    let tree = merged(&[&["d/a"], &["b => d/a", "c => d/a"], &["d/a"]]).unwrap();
    assert_eq!(listing(&tree), ["b from 0", "c from 0", "d/0", "d/a from 2"]);
    assert_eq!(tree.lookup(Tree::ROOT, b"b"), tree.lookup(Tree::ROOT, b"c"));
    let misfit = merged(&[&["a"], &["b => gone"]]).unwrap_err();
    assert_eq!(misfit.entry, "gone");
    assert!(merged(&[&["d/a"], &["b => d"]]).is_err(), "a directory has one name");
}
