//! Digests, and what stands for the content of a file with holes.
//!
//! ```text
//!  sha256( "msb-content-1\n" | size u64 LE | for each block that is not all zero, in order:
//!                                              index u64 LE | sha256(block, padded with zeros) )
//! ```
//!
//! Blocks are 64 KiB. Whether zeros are a hole or written out makes no difference, so a file and its
//! copy have one digest on any file system, and a sparse one costs what is in it.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, str::FromStr};

use rustix::{fs::SeekFrom, io::Errno};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Unit of what is hashed and skipped. Smaller ones skip more and cost more.
const BLOCK: usize = 64 << 10;

static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// First bytes of what is hashed: another scheme is another word.
const SCHEME: &[u8] = b"msb-content-1\n";

/// A SHA-256: of bytes, or of the content of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Digest of `bytes` as they are.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Digest of what a file holds, however its holes are stored.
    ///
    /// # Errors
    /// What the kernel reported.
    pub fn of_content(file: &File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut whole = Sha256::new();
        whole.update(SCHEME);
        whole.update(size.to_le_bytes());
        let mut block = vec![0; BLOCK];
        let mut index = 0;
        while let Some(next) = block_with_data(file, index, size)? {
            let offset = next * BLOCK as u64;
            let len = usize::try_from(size - offset).unwrap_or(BLOCK).min(BLOCK);
            file.read_exact_at(&mut block[..len], offset)?;
            block[len..].fill(0);
            if block[..] != ZEROS[..] {
                whole.update(next.to_le_bytes());
                whole.update(Sha256::digest(&block));
            }
            index = next + 1;
        }
        Ok(Self(whole.finalize().into()))
    }
}

/// The first block from `index` on that the file system has data of.
fn block_with_data(file: &File, index: u64, size: u64) -> io::Result<Option<u64>> {
    let offset = index * BLOCK as u64;
    if offset >= size {
        return Ok(None);
    }
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data < size => Ok(Some(data / BLOCK as u64)),
        Ok(_) | Err(Errno::NXIO) => Ok(None),
        // A file system that does not know.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(index)),
        Err(errno) => Err(errno.into()),
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no digest: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no sha256 digest")]
pub struct NoDigest {
    text: String,
}

impl FromStr for Digest {
    type Err = NoDigest;

    fn from_str(text: &str) -> Result<Self, NoDigest> {
        let parse = || {
            let digits = text.strip_prefix("sha256:")?.as_bytes();
            let lower_hex = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
            if digits.len() != 64 || !digits.iter().all(lower_hex) {
                return None;
            }
            let mut bytes = [0; 32];
            for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
                *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
            }
            Some(Self(bytes))
        };
        parse().ok_or_else(|| NoDigest { text: text.into() })
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn digest(write: impl Fn(&File) -> io::Result<()>) -> Digest {
        let file = tempfile::tempfile().unwrap();
        write(&file).unwrap();
        Digest::of_content(&file).unwrap()
    }

    #[test]
    fn content_of_known_files_has_known_digests() {
        // Made by a program of a few lines that knows the format's page and nothing else.
        let empty = digest(|_| Ok(()));
        let hole = digest(|file| file.set_len(1 << 30));
        let byte = digest(|file| {
            file.set_len(1 << 20)?;
            file.write_all_at(b"x", 0x2_0003)
        });
        for (found, text) in [
            (empty, "23e392fa5b25f33bb669f7a168123b3e3abe0034cd3aa93415e6cd7a52441ec7"),
            (hole, "d87dbc8a221a0b9eb18c1bd7d41aa4a47bcf06e1303c4ed98842d18fa835612f"),
            (byte, "77881522874ead39c63f1da5aa3ef01f97f3136a0af017156318643618dcfe8c"),
        ] {
            assert_eq!(found.to_string(), format!("sha256:{text}"));
        }
    }

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let digest = Digest::of(b"x");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        let text = digest.to_string();
        for wrong in
            ["", "sha256:", &text[..70], &text.to_uppercase(), &text.replace("sha256", "sha512")]
        {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn zeros_written_out_and_holes_are_one_content(
            size in 1_u64..400_000,
            writes in prop::collection::btree_map(0_u64..390_000, any::<u8>(), 0..12),
            zeros in prop::collection::vec((0_u64..390_000, 1_usize..80_000), 0..4),
        ) {
            let sparse = |file: &File, writes: &BTreeMap<u64, u8>| -> io::Result<()> {
                for (offset, byte) in writes {
                    file.write_all_at(&[*byte], *offset)?;
                }
                file.set_len(size)
            };
            let plain = digest(|file| sparse(file, &writes));
            let filled = digest(|file| {
                for (offset, len) in &zeros {
                    file.write_all_at(&vec![0; *len], *offset)?;
                }
                sparse(file, &writes)
            });
            prop_assert_eq!(plain, filled);
            let mut other = writes.clone();
            let at = size / 2;
            other.insert(at, other.get(&at).map_or(1, |byte| byte.wrapping_add(1)));
            prop_assert_ne!(plain, digest(|file| sparse(file, &other)));
            prop_assert_ne!(plain, digest(|file| { sparse(file, &writes)?; file.set_len(size + 1) }));
        }
    }
}
