//! The disk descriptor: a text file that makes one disk of an image's parts, in order.
//!
//! VMDK's `twoGbMaxExtentFlat` is the one format of concatenated files that both QEMU and libkrun read. Names
//! are relative to the descriptor, so a store may be moved.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What VMDK counts in.
const SECTOR_BYTES: u64 = 512;

/// One file behind the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Path relative to the descriptor's directory.
    pub(crate) path: PathBuf,
    pub(crate) size_bytes: u64,
}

/// The descriptor's text. Sizes are multiples of 512, names are ours: plain ASCII without quotes.
pub(crate) fn encode(extents: &[Extent], id: [u8; 4]) -> String {
    let mut text = String::from("# Disk DescriptorFile\nversion=1\n");
    let _ = write!(text, "CID={:08x}\nparentCID=ffffffff\n", u32::from_be_bytes(id));
    text.push_str("createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n");
    let mut sectors = 0;
    for extent in extents {
        let count = extent.size_bytes / SECTOR_BYTES;
        // Read-only is the opener's choice: QEMU skips extents that are not marked RW.
        let _ = writeln!(text, "RW {count} FLAT \"{}\" 0", extent.path.display());
        sectors += count;
    }
    // A geometry is demanded but means nothing to a virtual disk without a BIOS.
    let cylinders = sectors.div_ceil(63 * 16).min(16383);
    let _ = write!(
        text,
        "\n# The Disk Data Base\nddb.adapterType = \"ide\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
         ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n"
    );
    text
}

/// Reads what [`encode`] wrote; `None` for anything else.
pub(crate) fn decode(text: &str) -> Option<Vec<Extent>> {
    if !text.starts_with("# Disk DescriptorFile\n") {
        return None;
    }
    text.lines()
        .filter(|line| line.starts_with("RW "))
        .map(|line| {
            let (sectors, name) = line.strip_prefix("RW ")?.split_once(" FLAT \"")?;
            let path = Path::new(name.strip_suffix("\" 0")?).to_owned();
            let size_bytes = sectors.parse::<u64>().ok()?.checked_mul(SECTOR_BYTES)?;
            Some(Extent { path, size_bytes })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_is_written_and_read_back() {
        let extents = vec![
            Extent { path: "meta.erofs".into(), size_bytes: 8192 },
            Extent { path: "../../layers/sha256-00.512.erofs".into(), size_bytes: 5 << 30 },
        ];
        let text = encode(&extents, [0xab, 0, 0, 1]);
        assert_eq!(
            text,
            "# Disk DescriptorFile\nversion=1\nCID=ab000001\nparentCID=ffffffff\n\
             createType=\"twoGbMaxExtentFlat\"\n\n# Extent description\n\
             RW 16 FLAT \"meta.erofs\" 0\n\
             RW 10485760 FLAT \"../../layers/sha256-00.512.erofs\" 0\n\n\
             # The Disk Data Base\nddb.adapterType = \"ide\"\nddb.geometry.cylinders = \"10403\"\n\
             ddb.geometry.heads = \"16\"\nddb.geometry.sectors = \"63\"\n"
        );
        assert_eq!(decode(&text), Some(extents));
        assert_eq!(decode("RW 16 FLAT \"x\" 0"), None);
    }
}
