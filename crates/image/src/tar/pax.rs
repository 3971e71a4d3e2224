//! PAX records: `LENGTH KEY=VALUE` lines that override what a header can hold.

use std::collections::BTreeMap;

use super::Entry;
use super::sparse::{Described, Segment};
use crate::tree::{Timestamp, Xattr};

const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// The records of one header; a later record of the same key wins.
#[derive(Debug, Default)]
pub(super) struct Records {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    /// `GNU.sparse.offset` and `.numbytes` repeat (sparse format 0.0); their order is their meaning.
    sparse_pairs: Vec<u64>,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.sparse_pairs.is_empty()
    }

    /// Adds the records in `bytes`.
    pub(super) fn extend(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        const FAULT: &str = "a PAX record is malformed";
        while !bytes.is_empty() {
            let blank = bytes.iter().take(20).position(|byte| *byte == b' ').ok_or(FAULT)?;
            let length =
                usize::try_from(decimal(&bytes[..blank]).ok_or(FAULT)?).map_err(|_| FAULT)?;
            let record = bytes.get(blank + 1..length).ok_or(FAULT)?;
            let record = record.strip_suffix(b"\n").ok_or(FAULT)?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(FAULT)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"" => return Err(FAULT),
                b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                    self.sparse_pairs.push(decimal(value).ok_or("a PAX sparse map is malformed")?);
                }
                _ => {
                    self.records.insert(key.to_vec(), value.to_vec());
                }
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Lays the records over what the header said.
    pub(super) fn apply(&self, entry: &mut Entry) -> Result<(), &'static str> {
        for (key, value) in &self.records {
            // An empty value takes the record back (POSIX); so an attribute without a value cannot be told from one
            // that was removed, and engines written in Go drop both.
            if value.is_empty() {
                continue;
            }
            let number = || decimal(value).ok_or("a PAX number is malformed");
            match key.as_slice() {
                b"path" => entry.name.clone_from(value),
                b"linkpath" => entry.link.clone_from(value),
                b"size" => {
                    entry.size = number()?;
                    entry.stored = entry.size;
                }
                b"uid" => {
                    let uid = number()?.try_into().map_err(|_| "the owner is absurd")?;
                    entry.attributes.uid = uid;
                }
                b"gid" => {
                    let gid = number()?.try_into().map_err(|_| "the group is absurd")?;
                    entry.attributes.gid = gid;
                }
                b"mtime" => {
                    entry.attributes.modified =
                        Timestamp::parse(value).ok_or("a PAX time is malformed")?;
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                        entry.xattrs.retain(|xattr| *xattr.name != *name);
                        entry.xattrs.push(Xattr::new(name, value));
                    }
                }
            }
        }
        Ok(())
    }

    /// The sparse file these records describe (GNU's PAX formats 0.0, 0.1 and 1.0), if they describe one.
    pub(super) fn sparse(&self) -> Option<Result<Described, &'static str>> {
        let get = |key: &[u8]| self.records.get(key);
        let size = get(b"GNU.sparse.realsize").or_else(|| get(b"GNU.sparse.size"))?;
        const FAULT: &str = "a PAX sparse map is malformed";
        let describe = || {
            let pairs: Option<Vec<u64>> = match get(b"GNU.sparse.map") {
                Some(map) => Some(
                    map.split(|byte| *byte == b',')
                        .map(decimal)
                        .collect::<Option<_>>()
                        .ok_or(FAULT)?,
                ),
                None if get(b"GNU.sparse.major").is_some() => None,
                None => Some(self.sparse_pairs.clone()),
            };
            let segments = match pairs {
                Some(pairs) if pairs.len() % 2 == 0 => Some(Segment::from_pairs(&pairs)),
                Some(_) => return Err(FAULT),
                None => None,
            };
            Ok(Described {
                name: get(b"GNU.sparse.name").cloned(),
                size: decimal(size).ok_or(FAULT)?,
                segments,
            })
        };
        Some(describe())
    }
}

/// Digits only: no sign, no blanks, no overflow.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}
