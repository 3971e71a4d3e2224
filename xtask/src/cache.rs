//! A folder of costly results outside the checkout: `<cache>/<kind>/<key>/`.
//!
//! The key is a hash of everything that shapes the result, so an entry is never edited and never
//! stale. It appears whole (made under a temporary name, then renamed), and two programs that
//! want the same entry make it once (a lock file beside it).

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{terminal, workspace};

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
    let _lock = lock(&folder.join(format!("{key}.lock")))?;
    if entry.is_dir() {
        return Ok(entry);
    }
    let partial = format!("{key}.partial-");
    remove_leftovers(folder, &partial)?;
    let work = tempfile::Builder::new()
        .prefix(&partial)
        .tempdir_in(folder)
        .with_context(|| format!("create a folder in {}", folder.display()))?;
    make(work.path())?;
    // From here on the folder is the entry; should the rename fail, it is taken away again.
    fs::rename(work.path(), &entry).with_context(|| format!("publish {}", entry.display()))?;
    let _published = work.keep();
    Ok(entry)
}

/// Removes folders whose name starts with `prefix`: what a program that was killed left behind.
///
/// The caller holds the lock under which such folders are made.
pub(crate) fn remove_leftovers(folder: &Path, prefix: &str) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    for entry in entries.filter_map(Result::ok) {
        if entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            let path = entry.path();
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Holds `path` locked until the file is dropped; says so when another program has it.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    if file.try_lock().is_err() {
        terminal::note("another program is making this; waiting for it");
        file.lock().with_context(|| format!("lock {}", path.display()))?;
    }
    Ok(file)
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
    fn leftover_of_a_killed_maker_is_removed_and_that_of_another_entry_is_not() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["key.partial-old", "other.partial-running"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        get_or_make_in(folder.path(), "key", |_| Ok(())).unwrap();
        assert!(!folder.path().join("key.partial-old").exists());
        assert!(folder.path().join("other.partial-running").exists());
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
