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

/// Time for which a shape whose template failed is not tried again.
const FAILED_FOR: Duration = Duration::from_hours(1);

const NEW: &str = "new";
const LOCK: &str = "lock";
const FAILED: &str = "failed.json";
const LOG: &str = "build.log";

/// The templates of a home, and how much of them is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Templates {
    root: PathBuf,
    limits: TemplateLimits,
}

/// How much is kept. The template unused for longest goes first; the newest stays in any case, unless
/// a limit is zero: then there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateLimits {
    /// Most templates. 16 by default: a home has a handful of shapes and images in use.
    pub count: usize,
    /// Most bytes. 1 GiB by default: a template of 512 MiB takes about 40 MiB.
    pub bytes: u64,
}

impl Default for TemplateLimits {
    fn default() -> Self {
        Self { count: 16, bytes: 1 << 30 }
    }
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
    pub fn new(root: PathBuf, limits: TemplateLimits) -> Self {
        Self { root, limits }
    }

    /// Whether there may be any.
    pub(crate) fn are_kept(&self) -> bool {
        self.limits.count > 0 && self.limits.bytes > 0
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
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

    /// Removes all of them but what others are building, where none are kept.
    pub(crate) fn clear(&self) {
        match self.trim(None) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "could not remove templates");
            }
            _ => {}
        }
    }

    /// Removes what is more than is kept, the least recently used first, never `newest`, and what
    /// builds that were killed have left.
    fn trim(&self, newest: Option<&Shape>) -> io::Result<()> {
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
            let is_too_much = count > self.limits.count || bytes > self.limits.bytes;
            if is_too_much && Some(template.shape()) != newest {
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

    fn templates(dir: &tempfile::TempDir) -> Templates {
        limited(dir, TemplateLimits::default())
    }

    fn limited(dir: &tempfile::TempDir, limits: TemplateLimits) -> Templates {
        Templates::new(dir.path().to_owned(), limits)
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
        let templates = templates(&dir);
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
        let templates = templates(&dir);
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
        let kept = 3;
        let templates = limited(&dir, TemplateLimits { count: kept, ..TemplateLimits::default() });
        let shapes: Vec<_> = (0..kept + 2).map(|n| shape(&n.to_string())).collect();
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
        templates.trim(shapes.last()).unwrap();
        let there: Vec<_> = shapes.iter().map(|shape| templates.place(shape).exists()).collect();
        let expected: Vec<_> = (0..shapes.len()).map(|n| n != kept).collect();
        assert_eq!(there, expected);
        let left = ["half", "killed.new", "killed.lock", "built.new", "built.lock"];
        let left = left.map(|name| dir.path().join(name).exists());
        assert_eq!(left, [false, false, false, true, true]);
    }

    #[test]
    fn bytes_are_limited_and_zero_of_either_keeps_none() {
        let one = size_of_one();
        for (limits, left) in [
            (TemplateLimits { bytes: one * 2, ..TemplateLimits::default() }, 2),
            // The newest stays, also where it is too large.
            (TemplateLimits { bytes: 1, ..TemplateLimits::default() }, 1),
            (TemplateLimits { bytes: 0, ..TemplateLimits::default() }, 0),
            (TemplateLimits { count: 0, ..TemplateLimits::default() }, 0),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let templates = limited(&dir, limits);
            let shapes = ["a", "b", "c"].map(shape);
            shapes.iter().for_each(|shape| put(&templates, shape));
            match templates.are_kept() {
                true => templates.trim(shapes.last()).unwrap(),
                false => templates.clear(),
            }
            let there = shapes.iter().filter(|shape| templates.place(shape).exists());
            assert_eq!(there.count(), left, "{limits:?}");
        }
        // Where there is no folder there is nothing to clear.
        templates(&tempfile::tempdir().unwrap()).clear();
    }

    fn size_of_one() -> u64 {
        let dir = tempfile::tempdir().unwrap();
        put(&templates(&dir), &shape("one"));
        templates(&dir).find(&shape("one")).unwrap().unwrap().size_bytes()
    }
}
