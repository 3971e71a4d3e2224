//! Directory content: blocks of sorted entries, each followed by its names.
//!
//! ```text
//! block: [nid u64 | name offset u16 | type u8 | 0] * n, name, name, …, zeros
//! ```
//! Entries are in ascending byte order over the whole directory; no entry is split between blocks; the first
//! entry's name offset tells how many there are. The last block is not padded: the directory's size ends it.

use super::format::BlockSize;

const ENTRY_BYTES: u64 = 12;

/// Bytes that a directory with these names (sorted, `.` and `..` included) takes.
pub(super) fn encoded_len<'a>(names: impl Iterator<Item = &'a [u8]>, block_size: BlockSize) -> u64 {
    let (mut full_blocks, mut used) = (0, 0);
    for name in names {
        let need = ENTRY_BYTES + name.len() as u64;
        if used + need > block_size.bytes() {
            full_blocks += 1;
            used = 0;
        }
        used += need;
    }
    full_blocks * block_size.bytes() + used
}

/// One entry to be encoded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: u64,
    pub(super) file_type: u8,
}

/// Appends the directory to `out`; its length is [`encoded_len`] of the same names.
pub(super) fn encode(entries: &[Dirent<'_>], block_size: BlockSize, out: &mut Vec<u8>) {
    let mut rest = entries;
    while !rest.is_empty() {
        let mut used = 0;
        let fits = rest
            .iter()
            .take_while(|entry| {
                used += ENTRY_BYTES + entry.name.len() as u64;
                used <= block_size.bytes()
            })
            .count();
        let (block, next) = rest.split_at(fits);
        let mut name_offset = ENTRY_BYTES * block.len() as u64;
        let start = out.len() as u64;
        for entry in block {
            out.extend(entry.nid.to_le_bytes());
            // A block has at most 4096 bytes, so offsets in it fit.
            out.extend(u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
            out.extend([entry.file_type, 0]);
            name_offset += entry.name.len() as u64;
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
        if !next.is_empty() {
            let end = start + block_size.bytes();
            out.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);
        }
        rest = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_length_is_predicted_for_every_fill() {
        for block_size in [BlockSize::B512, BlockSize::B4096] {
            for count in 0..200_usize {
                let names: Vec<Vec<u8>> =
                    (0..count).map(|n| vec![b'a'; 1 + (n * 37 + count) % 255]).collect();
                let entries: Vec<Dirent<'_>> =
                    names.iter().map(|name| Dirent { name, nid: 1, file_type: 1 }).collect();
                let mut out = Vec::new();
                encode(&entries, block_size, &mut out);
                let predicted = encoded_len(names.iter().map(Vec::as_slice), block_size);
                assert_eq!(out.len() as u64, predicted, "{count} names");
            }
        }
    }
}
