//! Templates: machines that stand right before they are told who they are, one for each shape.
//!
//! ```text
//!  templates/
//!    <key>/           a checkpoint; the key names its shape, with or without an image's root
//!    <key>.new/       one being built, by whoever holds the lock
//!    <key>.lock
//!    failed.json      a shape whose template did not restore, and when that was found
//!    build.log        what the last build said
//! ```
//!
//! Whoever starts a sandbox copies a template, so one can be removed at any time.

pub(crate) mod build;
pub(crate) mod plan;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    Error, SandboxLock,
    checkpoint::{Checkpoint, CheckpointError, Shape},
    vmm::write_whole,
};

pub(crate) use build::BuildOrder;

/// Most templates kept: a home has a handful of shapes and images in use. The one unused for longest goes first.
const MAX_TEMPLATES: usize = 16;

/// Most bytes kept, by the same rule. A template of 512 MiB takes about 40 MiB.
const MAX_BYTES: u64 = 1 << 30;

/// Time for which a shape whose template failed is not tried again.
const FAILED_FOR: Duration = Duration::from_hours(1);

const NEW: &str = "new";
const LOCK: &str = "lock";
const FAILED: &str = "failed.json";
const LOG: &str = "build.log";

/// The templates of a home.
#[derive(Debug, Clone)]
pub(crate) struct Templates {
    root: PathBuf,
}

/// The last build that came to nothing.
#[derive(Debug, Serialize, Deserialize)]
struct Failure {
    key: String,
    at: SystemTime,
    why: String,
}

impl Templates {
    /// Those at `root`, which need not exist.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The template of a shape; `None` when there is none.
    ///
    /// # Errors
    /// [`CheckpointError`] when there is one that must not be used.
    pub(crate) fn find(&self, shape: &Shape) -> Result<Option<Checkpoint>, CheckpointError> {
        let found = Checkpoint::open(&self.place(shape))?;
        if let Some(template) = &found {
            template.shape().check(shape)?;
        }
        Ok(found)
    }

    /// Whether a template of that shape should be built now.
    pub(crate) fn wants(&self, shape: &Shape) -> bool {
        let key = shape.key();
        let hopeless = |failure: Failure| {
            failure.key == key && failure.at.elapsed().is_ok_and(|age| age < FAILED_FOR)
        };
        let failed = fs::read(self.root.join(FAILED)).ok();
        let failed = failed.and_then(|json| serde_json::from_slice(&json).ok());
        let being_built = SandboxLock::is_held(&self.lock_path(shape)).unwrap_or(true);
        !self.place(shape).exists() && !being_built && !failed.is_some_and(hopeless)
    }

    /// Makes this process the only one that builds a template of that shape; `None` when another is.
    pub(crate) fn claim(&self, shape: &Shape) -> io::Result<Option<SandboxLock>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        match SandboxLock::acquire(&self.lock_path(shape)) {
            Ok(lock) => Ok(Some(lock)),
            Err(Error::Locked { .. }) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    /// Removes a template that proved unusable. Machines that run from it have their own copy.
    pub(crate) fn retire(&self, key: &str) {
        if let Err(error) = remove_tree(&self.root.join(key)) {
            tracing::warn!(%error, "could not remove a template");
        }
    }

    fn place(&self, shape: &Shape) -> PathBuf {
        self.root.join(shape.key())
    }

    fn new_path(&self, shape: &Shape) -> PathBuf {
        self.place(shape).with_extension(NEW)
    }

    fn lock_path(&self, shape: &Shape) -> PathBuf {
        self.place(shape).with_extension(LOCK)
    }

    fn note_failure(&self, shape: &Shape, why: String) {
        let failure = Failure { key: shape.key(), at: SystemTime::now(), why };
        if let Err(error) = write_whole(&self.root.join(FAILED), &failure) {
            tracing::warn!(%error, "could not note that a template failed");
        }
    }

    /// Removes what is more than is kept, the least recently used first, never `newest`, and what
    /// builds that were killed have left.
    fn trim(&self, newest: &Shape) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.root)?.flatten() {
            let path = entry.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some(LOCK) => remove_leftovers(&path)?,
                None if path.is_dir() => match Checkpoint::open(&path) {
                    Ok(Some(template)) => kept.push((template.last_used(), template, path)),
                    // Of another version, or half removed.
                    _ => remove_tree(&path)?,
                },
                _ => {}
            }
        }
        kept.sort_by_key(|(used, ..)| std::cmp::Reverse(*used));
        let (mut count, mut bytes) = (0, 0);
        for (_, template, path) in kept {
            count += 1;
            bytes += template.size_bytes();
            if (count > MAX_TEMPLATES || bytes > MAX_BYTES) && template.shape() != newest {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }
}

/// Removes the lock of a build that is over, and what it has left.
fn remove_leftovers(lock_path: &Path) -> io::Result<()> {
    if let Ok(_held) = SandboxLock::acquire(lock_path) {
        remove_tree(&lock_path.with_extension(NEW))?;
        fs::remove_file(lock_path)?;
    }
    Ok(())
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{checkpoint::SavedVm, vmm::new_memory};

    fn shape(name: &str) -> Shape {
        Shape { kernel: name.into(), ..Shape::default() }
    }

    fn put(templates: &Templates, shape: &Shape) {
        let dir = templates.place(shape);
        fs::create_dir_all(&dir).unwrap();
        let vm = SavedVm { memory: &new_memory(1 << 20).unwrap(), devices: b"state", upper: None };
        Checkpoint::write(&dir, shape.clone(), &vm).unwrap();
    }

    #[test]
    fn template_is_found_by_its_whole_shape_and_by_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::new(dir.path());
        assert!(templates.find(&shape("a")).unwrap().is_none());
        assert!(templates.wants(&shape("a")));
        put(&templates, &shape("a"));
        assert!(templates.find(&shape("a")).unwrap().is_some());
        assert!(!templates.wants(&shape("a")));
        assert!(templates.find(&shape("b")).unwrap().is_none());
        // One that lies in another's place is refused, not believed.
        fs::rename(templates.place(&shape("a")), templates.place(&shape("b"))).unwrap();
        assert!(matches!(
            templates.find(&shape("b")),
            Err(CheckpointError::OtherShape { part: "guest kernel" })
        ));
        templates.retire(&shape("b").key());
        assert!(templates.find(&shape("b")).unwrap().is_none());
    }

    #[test]
    fn failed_shape_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::new(dir.path());
        templates.note_failure(&shape("a"), "no".into());
        assert!(!templates.wants(&shape("a")));
        assert!(templates.wants(&shape("b")));
        let long_ago = SystemTime::now() - FAILED_FOR;
        let failure = Failure { key: shape("a").key(), at: long_ago, why: "no".into() };
        write_whole(&dir.path().join(FAILED), &failure).unwrap();
        assert!(templates.wants(&shape("a")));
    }

    #[test]
    fn least_recently_used_templates_go_first() {
        let dir = tempfile::tempdir().unwrap();
        let templates = Templates::new(dir.path());
        let shapes: Vec<_> = (0..MAX_TEMPLATES + 2).map(|n| shape(&n.to_string())).collect();
        for (age, shape) in shapes.iter().rev().enumerate() {
            put(&templates, shape);
            let manifest = templates.place(shape).join("checkpoint.json");
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(age as u64);
            fs::File::open(manifest).unwrap().set_modified(used).unwrap();
        }
        for half_made in ["half", "killed.new", "built.new"] {
            fs::create_dir(dir.path().join(half_made)).unwrap();
        }
        fs::write(dir.path().join("killed.lock"), "").unwrap();
        let _held = SandboxLock::acquire(&dir.path().join("built.lock")).unwrap();
        // The last two are the oldest; the very last is the one just built.
        templates.trim(shapes.last().unwrap()).unwrap();
        let there: Vec<_> = shapes.iter().map(|shape| templates.place(shape).exists()).collect();
        let expected: Vec<_> = (0..shapes.len()).map(|n| n != MAX_TEMPLATES).collect();
        assert_eq!(there, expected);
        let left = ["half", "killed.new", "killed.lock", "built.new", "built.lock"];
        let left = left.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [false, false, false, true, true]);
    }
}
