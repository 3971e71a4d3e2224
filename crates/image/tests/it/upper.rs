//! The writable disk: judged by `e2fsck`, and by the kernel where it may mount.

use std::os::unix::fs::MetadataExt;

use anyhow::Result;
use microsandbox_image::ext4::{self, UpperEntry, UpperEntryKind, UpperOptions};
use tempfile::TempDir;

use crate::tools::{run, text};

#[test]
fn e2fsck_finds_nothing_and_the_directories_are_there() -> Result<()> {
    let directory = TempDir::new()?;
    for size_bytes in [1, 64 << 20, 4 << 30, 100 << 30] {
        let path = directory.path().join("upper.ext4");
        ext4::format(&path, &UpperOptions::new(size_bytes, [7; 16]), &[])?;
        run("e2fsck", &["-f", "-n", text(&path)?])?;
        let metadata = path.metadata()?;
        assert_eq!(metadata.len(), size_bytes.max(ext4::MIN_SIZE_BYTES));
        assert!(metadata.blocks() * 512 < 16 << 20, "{size_bytes} bytes are not sparse");
        let listing = run("debugfs", &["-R", "ls -l /", text(&path)?])?;
        for name in ["upper", "work"] {
            let line = listing.lines().find(|line| line.ends_with(&format!(" {name}")));
            assert!(line.is_some_and(|line| line.contains("40755")), "{name}: {listing}");
        }
        let features = run("dumpe2fs", &["-h", text(&path)?])?;
        for feature in ["has_journal", "metadata_csum", "extent"] {
            assert!(features.contains(feature), "{feature}: {features}");
        }
    }
    Ok(())
}

#[test]
fn entries_given_at_format_time_are_in_upper() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("upper.ext4");
    let host = directory.path().join("host");
    std::fs::write(&host, vec![3; 100_000])?;
    let entries = [
        UpperEntry::new("/etc", 0o755, UpperEntryKind::Directory),
        UpperEntry::new("/etc/motd", 0o644, UpperEntryKind::File(b"hello\n".to_vec())),
        UpperEntry::new("/etc/copy", 0o600, UpperEntryKind::HostFile(host.clone())),
        UpperEntry::new("/etc/link", 0o777, UpperEntryKind::Symlink("motd".into())),
        UpperEntry::new("/gone", 0, UpperEntryKind::Whiteout),
    ];
    ext4::format(&path, &UpperOptions::new(64 << 20, [7; 16]), &entries)?;
    run("e2fsck", &["-f", "-n", text(&path)?])?;
    let out = directory.path().join("out");
    run("debugfs", &["-R", &format!("dump /upper/etc/copy {}", text(&out)?), text(&path)?])?;
    assert_eq!(std::fs::read(&out)?, std::fs::read(&host)?);
    assert!(run("debugfs", &["-R", "cat /upper/etc/motd", text(&path)?])?.contains("hello"));
    assert!(run("debugfs", &["-R", "stat /upper/gone", text(&path)?])?.contains("character"));
    Ok(())
}

#[test]
fn a_failed_format_leaves_nothing() -> Result<()> {
    let directory = TempDir::new()?;
    let path = directory.path().join("upper.ext4");
    let orphan = [UpperEntry::new("/a/b", 0o644, UpperEntryKind::File(Vec::new()))];
    assert!(ext4::format(&path, &UpperOptions::new(64 << 20, [7; 16]), &orphan).is_err());
    let absent = UpperEntryKind::HostFile(directory.path().join("absent"));
    let entries = [UpperEntry::new("/a", 0o644, absent)];
    assert!(ext4::format(&path, &UpperOptions::new(64 << 20, [7; 16]), &entries).is_err());
    assert_eq!(std::fs::read_dir(directory.path())?.count(), 0);
    Ok(())
}
