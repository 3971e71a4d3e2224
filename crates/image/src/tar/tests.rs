//! What the reader makes of headers that archives in the wild have.

use std::io::Cursor;

use super::*;
use crate::tree::{Device, Timestamp};

/// A header with these fields, its checksum right.
fn block(name: &[u8], kind: u8, fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut block = vec![0; 512];
    block[..name.len()].copy_from_slice(name);
    block[156] = kind;
    for (at, bytes) in fields {
        block[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
    block
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    data
}

fn entries(archive: &[Vec<u8>]) -> Result<Vec<(Entry, Vec<u8>)>, LayerError> {
    let mut reader = Reader::new(Cursor::new(archive.concat()));
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let data = reader.read_small(&entry, 1 << 20)?;
        found.push((entry, data));
    }
    Ok(found)
}

fn one(archive: &[Vec<u8>]) -> Entry {
    let mut found = entries(archive).unwrap();
    assert_eq!(found.len(), 1);
    found.remove(0).0
}

#[test]
fn names_come_from_the_most_capable_place() {
    let long = [b'n'; 300];
    let ustar: &[(usize, &[u8])] = &[(257, b"ustar\x0000"), (345, b"a/prefix")];
    let old_gnu: &[(usize, &[u8])] = &[(257, b"ustar  \0"), (345, b"12345670123")];
    let size: &[(usize, &[u8])] = &[(124, b"00000000454")];
    let record = b"17 path=from/pax\n";
    for (archive, expected) in [
        (vec![block(b"plain", b'0', &[])], &b"plain"[..]),
        (vec![block(b"name", b'0', ustar)], b"a/prefix/name"),
        (vec![block(b"name", b'0', old_gnu)], b"name"),
        (vec![block(b"", b'L', size), padded(&long), block(b"cut", b'0', &[])], &long),
        (
            vec![
                block(b"", b'x', &[(124, b"00000000021")]),
                padded(record),
                block(b"x", b'0', ustar),
            ],
            b"from/pax",
        ),
        (
            vec![
                block(b"", b'g', &[(124, b"00000000021")]),
                padded(record),
                block(b"x", b'0', &[]),
            ],
            b"from/pax",
        ),
    ] {
        assert_eq!(one(&archive).name, expected);
    }
}

#[test]
fn numbers_are_octal_blank_padded_or_base_256() {
    for (field, expected) in [
        (&b"0000644\0"[..], Ok(0o644)),
        (b"   644 \0", Ok(0o644)),
        (b"\0\0\0\0\0\0\0\0", Ok(0)),
        (b"77777777", Ok(0o77_777_777)),
        (&[0x80, 0, 0, 0, 0, 0, 1, 0], Ok(256)),
        (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Ok(-2)),
        (b"0000648\0", Err(())),
        (b"-000001\0", Err(())),
    ] {
        assert_eq!(header::number(field).map_err(drop), expected, "{field:?}");
    }
    assert!(header::number(&[0x80 | 0x3f; 12]).is_err(), "larger than 64 bits");
}

#[test]
fn kinds_and_their_fields_are_read() {
    let device: &[(usize, &[u8])] = &[(329, b"0000403"), (337, b"0001000")];
    let entry = one(&[block(b"d", b'3', device)]);
    assert_eq!(entry.kind, EntryKind::CharDevice(Device { major: 0o403, minor: 0o1000 }));
    assert_eq!(one(&[block(b"old/", 0, &[])]).kind, EntryKind::Directory, "a slash says so");
    let link = one(&[block(b"l", b'2', &[(157, b"target"), (124, b"00000000006")])]);
    assert_eq!((link.link.as_slice(), link.size), (&b"target"[..], 0), "links have no data");
    let early = one(&[block(b"f", b'0', &[(136, &[0xff; 12])])]);
    assert_eq!(early.attributes.modified, Timestamp::from_seconds(-1));
}

#[test]
fn data_is_delivered_and_what_is_not_read_is_skipped() {
    let size: &[(usize, &[u8])] = &[(124, b"00000001130")];
    let archive =
        [block(b"a", b'0', size), padded(&[1; 600]), block(b"b", b'0', size), padded(&[2; 600])];
    let found = entries(&archive).unwrap();
    assert_eq!(found.iter().map(|(_, data)| data.len()).collect::<Vec<_>>(), [600, 600]);
    let mut reader = Reader::new(Cursor::new(archive.concat()));
    assert_eq!(reader.next_entry().unwrap().map(|entry| entry.name), Some(b"a".to_vec()));
    assert_eq!(reader.next_entry().unwrap().map(|entry| entry.name), Some(b"b".to_vec()));
    assert!(reader.next_entry().unwrap().is_none());
}

#[test]
fn records_that_lie_about_their_length_are_refused() {
    for record in [
        &b"99 path=x\n"[..],
        b"9 path=x\n\n",
        b"path=x\n",
        b"5 a=b",
        b" a=b\n",
        b"6 noequals\n",
        b"0 \n",
    ] {
        let size = format!("{:011o}", record.len());
        let archive =
            [block(b"", b'x', &[(124, size.as_bytes())]), padded(record), block(b"f", b'0', &[])];
        assert!(entries(&archive).is_err(), "{}", record.escape_ascii());
    }
    let endless: &[(usize, &[u8])] = &[(124, b"77777777777")];
    assert!(entries(&[block(b"", b'x', endless)]).is_err(), "no gigabytes of records");
}

#[test]
fn names_in_messages_are_printable() {
    for (name, shown) in [
        (&b"plain/name"[..], "plain/name"),
        (b"with\nline\x1b[31m", "with\\nline\\u{1b}[31m"),
        (b"caf\xe9", "caf\u{fffd}"),
        ("café".as_bytes(), "café"),
    ] {
        assert_eq!(display_name(name), shown);
    }
}
