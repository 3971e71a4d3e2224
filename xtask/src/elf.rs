//! The two questions xtask asks about an ELF file: is it static, and can a VMM enter it by PVH.
//!
//! Reads 64-bit little-endian files only; that is what both the agent and the kernel are.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// Segment type of a request for a dynamic loader (`PT_INTERP`, ELF specification).
const PT_INTERP: u32 = 3;
/// Segment type of notes (`PT_NOTE`).
const PT_NOTE: u32 = 4;
/// Note of owner "Xen" that holds the PVH entry (`XEN_ELFNOTE_PHYS32_ENTRY`, xen/elfnote.h).
const PVH_ENTRY: u32 = 18;

/// Fails if the program needs a dynamic loader: the guest has none when it starts.
pub(crate) fn require_static(path: &Path) -> Result<()> {
    let bytes = read(path)?;
    if segments(&bytes, path)?.any(|segment| segment.kind == PT_INTERP) {
        bail!("{} is dynamically linked; the agent must be static", path.display());
    }
    Ok(())
}

/// Fails if the kernel lacks the PVH entry: QEMU microvm could not start it.
pub(crate) fn require_pvh(path: &Path) -> Result<()> {
    let bytes = read(path)?;
    let found = segments(&bytes, path)?
        .filter(|segment| segment.kind == PT_NOTE)
        .filter_map(|segment| bytes.get(segment.start..segment.start.checked_add(segment.len)?))
        .any(has_pvh_note);
    if !found {
        bail!("{} has no PVH entry; CONFIG_PVH is missing", path.display());
    }
    Ok(())
}

struct Segment {
    kind: u32,
    start: usize,
    len: usize,
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

/// The program headers, by the offsets of `Elf64_Ehdr` and `Elf64_Phdr`.
fn segments<'a>(bytes: &'a [u8], path: &Path) -> Result<impl Iterator<Item = Segment> + 'a> {
    if bytes.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("{} is not a 64-bit little-endian ELF file", path.display());
    }
    let cut = || format!("{} ends within its ELF header", path.display());
    let table = u64_at(bytes, 0x20).with_context(cut)?;
    let size = usize::from(u16_at(bytes, 0x36).with_context(cut)?);
    let count = usize::from(u16_at(bytes, 0x38).with_context(cut)?);
    Ok((0..count).filter_map(move |index| {
        let header = bytes.get(table.checked_add(index * size)?..)?;
        Some(Segment {
            kind: u32_at(header, 0)?,
            start: u64_at(header, 0x08)?,
            len: u64_at(header, 0x20)?,
        })
    }))
}

/// Walks notes: name length, content length, type, then both padded to four bytes.
fn has_pvh_note(mut notes: &[u8]) -> bool {
    fn next(notes: &[u8]) -> Option<(bool, &[u8])> {
        let name_len = usize::try_from(u32_at(notes, 0)?).ok()?;
        let content_len = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let name = notes.get(12..12 + name_len)?;
        let rest = 12 + name_len.next_multiple_of(4) + content_len.next_multiple_of(4);
        Some((name == b"Xen\0" && kind == PVH_ENTRY, notes.get(rest..).unwrap_or_default()))
    }
    while let Some((found, rest)) = next(notes) {
        if found {
            return true;
        }
        notes = rest;
    }
    false
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dynamic_program_is_refused() {
        let this = std::env::current_exe().unwrap();
        let error = require_static(&this).unwrap_err();
        assert!(error.to_string().contains("dynamically linked"), "{error}");
    }

    #[test]
    fn program_without_pvh_note_is_refused() {
        let this = std::env::current_exe().unwrap();
        assert!(require_pvh(&this).unwrap_err().to_string().contains("no PVH entry"));
    }

    #[test]
    fn other_files_and_cut_ones_are_refused_not_misread() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let whole = fs::read(std::env::current_exe().unwrap()).unwrap();
        for content in [b"#!/bin/sh\n".as_slice(), b"", &whole[..6], &whole[..0x30]] {
            fs::write(&path, content).unwrap();
            assert!(require_static(&path).is_err(), "{} bytes", content.len());
        }
    }

    #[test]
    fn pvh_note_is_found_behind_another() {
        let note = |name: &[u8], kind: u32, content: &[u8]| {
            let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap().to_le_bytes();
            [&len(name), &len(content), kind.to_le_bytes().as_slice(), name, content].concat()
        };
        let other = note(b"GNU\0", 3, b"12345678");
        assert!(!has_pvh_note(&other));
        let pvh = note(b"Xen\0", PVH_ENTRY, &[0; 8]);
        assert!(has_pvh_note(&[other, pvh].concat()));
    }
}
