//! A folder of costly results outside the checkout: `<cache>/<kind>/<key>/`.
//!
//! The key is a hash of everything that shapes the result, so an entry is never edited and never
//! stale. It appears whole (made under a temporary name, then renamed). One program at a time makes
//! entries of a kind (a lock file in the folder), so two that want the same make it once, and what
//! a killed one left behind is known by its name.

use std::{
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{terminal, workspace};

/// How folders are called while they are filled.
const PARTIAL: &str = "partial-";

/// The entry `key` of `kind`, made by `make` in the empty folder it is given if it is missing.
///
/// When `make` fails nothing is left but what it printed.
pub(crate) fn get_or_make(
    kind: &str,
    key: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    get_or_make_in(&workspace::cache()?.join(kind), key, make)
}

fn get_or_make_in(
    folder: &Path,
    key: &str,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let entry = folder.join(key);
    if entry.is_dir() {
        return Ok(entry);
    }
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let _lock = lock(folder)?;
    if entry.is_dir() {
        return Ok(entry);
    }
    let work = work_folder(folder)?;
    make(work.path())?;
    // From here on the folder is the entry; should the rename fail, it is taken away again.
    fs::rename(work.path(), &entry).with_context(|| format!("publish {}", entry.display()))?;
    let _published = work.keep();
    Ok(entry)
}

/// Holds `folder` locked until the file is dropped; says so when another program has it.
///
/// With the lock held, every partial folder is what a killed program left: they are removed.
pub(crate) fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        terminal::note("another program is making this; waiting for it");
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries.filter_map(Result::ok) {
        if is_partial(&entry.file_name()) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(file)
}

/// An empty folder in the locked `folder`, removed when dropped.
pub(crate) fn work_folder(folder: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix(PARTIAL)
        .tempdir_in(folder)
        .with_context(|| format!("create a folder in {}", folder.display()))
}

/// Whether this is the name of a folder that is being filled.
pub(crate) fn is_partial(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PARTIAL.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entry_is_made_once_and_whole() {
        let folder = tempfile::tempdir().unwrap();
        let make = |work: &Path| Ok(fs::write(work.join("file"), "content")?);
        let entry = get_or_make_in(folder.path(), "key", make).unwrap();
        assert_eq!(fs::read_to_string(entry.join("file")).unwrap(), "content");
        let again = get_or_make_in(folder.path(), "key", |_| panic!("made twice")).unwrap();
        assert_eq!(again, entry);
    }

    #[test]
    fn failure_leaves_no_entry() {
        let folder = tempfile::tempdir().unwrap();
        let make = |work: &Path| {
            fs::write(work.join("half"), "")?;
            anyhow::bail!("stopped")
        };
        get_or_make_in(folder.path(), "key", make).unwrap_err();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(Result::unwrap).collect();
        assert_eq!(left.len(), 1, "only the lock file stays: {left:?}");
    }

    #[test]
    fn leftover_of_a_killed_maker_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let leftover = folder.path().join("partial-old");
        fs::create_dir(&leftover).unwrap();
        get_or_make_in(folder.path(), "key", |_| Ok(())).unwrap();
        assert!(!leftover.exists());
    }

    #[test]
    fn two_makers_of_one_entry_make_it_once() {
        let folder = tempfile::tempdir().unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    get_or_make_in(folder.path(), "key", |_| {
                        made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                        Ok(())
                    })
                    .unwrap();
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }
}
