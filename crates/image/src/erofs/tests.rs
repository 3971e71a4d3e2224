//! What is written is read back by `erofs-rs`, wherever the parts of an image happen to fall.

use super::write::Plan;
use super::{BlockSize, HEAD_BYTES, Superblock, read};
use crate::tree::{Attributes, Inode, Kind, Part, Tree};

/// Writes the metadata of `tree` alone.
fn image(tree: &Tree, block_size: BlockSize) -> Vec<u8> {
    let plan = Plan::new(tree, block_size);
    let block = |bytes: u64| u32::try_from(bytes / block_size.bytes()).unwrap();
    let superblock = Superblock {
        block_size,
        blocks: block(HEAD_BYTES + plan.bytes()),
        inodes: plan.inodes(),
        meta_block: block(HEAD_BYTES),
        root_nid: plan.root_nid(),
        uuid: [0; 16],
    };
    let mut bytes = superblock.encode();
    plan.write(&mut bytes, superblock.meta_block, &|_| 0).unwrap();
    bytes
}

/// `bench image` found a Debian root of 21 names that had to move to the second block, where nobody looked for it.
#[test]
fn a_root_of_any_size_is_found() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for block_size in [BlockSize::B512, BlockSize::B4096] {
        let mut tree = Tree::new();
        for count in 0..400_usize {
            let bytes = image(&tree, block_size);
            std::fs::write(file.path(), &bytes).unwrap();
            let read = read::layer_tree(file.path(), Part(0)).unwrap();
            let names = |tree: &Tree| -> Vec<Box<[u8]>> {
                tree.directory(Tree::ROOT).unwrap().entries.keys().cloned().collect()
            };
            assert_eq!(names(&read), names(&tree), "{count} names, {block_size:?}");
            let fifo =
                Inode { attributes: Attributes::IMPLIED, xattrs: Vec::new(), kind: Kind::Fifo };
            let id = tree.add(fifo);
            tree.link(
                Tree::ROOT,
                format!("{count:0width$}", width = 1 + count % 23).as_bytes(),
                id,
            );
        }
    }
}
