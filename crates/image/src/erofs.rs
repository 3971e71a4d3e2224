//! EROFS: the read-only file system that guests mount.
//!
//! [`mod@write`] lays a [`Tree`](crate::tree::Tree) down as metadata; file data is somebody else's, named by block
//! number. [`read`] gets a layer's tree back from its file. The format is the kernel's `fs/erofs/erofs_fs.h`;
//! `docs/formats/erofs-image.md` says which part of it is used. Images are uncompressed, without a device table.

mod dirent;
mod format;
pub(crate) mod read;
pub(crate) mod write;
pub(crate) mod xattr;

pub use self::format::BlockSize;
pub(crate) use self::format::{HEAD_BYTES, PART_ALIGN, Superblock};

#[cfg(test)]
mod tests;
