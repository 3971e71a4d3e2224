//! Extended attributes behind an inode.
//!
//! ```text
//! header, 12 bytes (no filter, no shared ones) | [name len u8 | prefix u8 | value len u16 | name | value | pad to 4] *
//! ```

use crate::tree::Xattr;

const HEADER_BYTES: usize = 12;

/// Name prefixes that the format replaces by a number; a name that has none of them cannot be stored.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Whether the format (and the kernel behind it) has a place for this attribute.
pub(crate) fn is_storable(name: &[u8]) -> bool {
    split(name).is_some()
}

/// Whether these attributes fit behind one inode: 16-bit value sizes, and a 16-bit count of words in all.
pub(crate) fn fit(xattrs: &[Xattr]) -> bool {
    xattrs.iter().all(|xattr| xattr.value.len() <= usize::from(u16::MAX) && xattr.name.len() <= 255)
        && encoded_len(xattrs) <= (usize::from(u16::MAX) - 1) * 4
}

/// Bytes that these attributes take; nothing for none.
pub(super) fn encoded_len(xattrs: &[Xattr]) -> usize {
    if xattrs.is_empty() {
        return 0;
    }
    let entry = |xattr: &Xattr| {
        let suffix = split(&xattr.name).map_or(0, |(_, suffix)| suffix.len());
        (4 + suffix + xattr.value.len()).next_multiple_of(4)
    };
    HEADER_BYTES + xattrs.iter().map(entry).sum::<usize>()
}

/// `i_xattr_icount` of an inode with these attributes.
pub(super) fn count(xattrs: &[Xattr]) -> u16 {
    match encoded_len(xattrs) {
        0 => 0,
        len => u16::try_from((len - HEADER_BYTES) / 4 + 1).unwrap_or(u16::MAX),
    }
}

/// Appends the attributes to `out`.
pub(super) fn encode(xattrs: &[Xattr], out: &mut Vec<u8>) {
    if xattrs.is_empty() {
        return;
    }
    let start = out.len();
    out.extend([0; HEADER_BYTES]);
    for xattr in xattrs {
        let Some((prefix, suffix)) = split(&xattr.name) else { continue };
        let value_len = u16::try_from(xattr.value.len()).unwrap_or(u16::MAX);
        out.push(u8::try_from(suffix.len()).unwrap_or(u8::MAX));
        out.push(prefix);
        out.extend(value_len.to_le_bytes());
        out.extend_from_slice(suffix);
        out.extend_from_slice(&xattr.value);
        // Alignment counts from the inode, which is aligned itself; what is in `out` before it need not be.
        out.resize(start + (out.len() - start).next_multiple_of(4), 0);
    }
}

fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let suffix = name.strip_prefix(*prefix)?;
        // The ACL names are whole names; all others need something after the prefix.
        (prefix.ends_with(b".") != suffix.is_empty()).then_some((*index, suffix))
    })
}
