//! The two images, made once by real tools and kept in the cache.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::{PULLED, peers::Registry};
use crate::{
    cache,
    debian::{self, Package},
    digest, fixtures,
    oci::{self, Tag},
    process::Tool,
    terminal,
};

/// Raised when the code below changes what the images hold.
const RECIPE: &str = "bench images 1";
/// Tag of both images in their layouts.
pub(super) const TAG: &str = "bench";
const INCLUDED: &str = "--include=python3,python3-numpy,gcc,git";

const PACKAGES: &[Package] = &[Package { name: "skopeo", provides: "skopeo" }];

/// What the second and third layer hold, moved out of the first.
const TOOLCHAIN: &[&str] = &["usr/lib/gcc", "usr/include", "usr/lib/git-core"];
const PYTHON: &[&str] = &["usr/lib/python3", "usr/lib/python3.11"];

/// Folders of small files, and how many more times they are in the large layer.
const SMALL: &[&str] = &["usr/share", "usr/lib/python3", "usr/lib/python3.11"];
const COPIES: usize = 4;

/// Where the images are.
#[derive(Debug)]
pub(super) struct Images {
    /// OCI layout of the image that is pulled.
    pub(super) layout: PathBuf,
    /// A registry's files with the same image.
    pub(super) registry: PathBuf,
    /// OCI archive of the image that is loaded.
    pub(super) archive: PathBuf,
}

impl Images {
    /// Finds the images, or makes them; debootstrap needs root for that.
    pub(super) fn ensure() -> Result<Self> {
        debian::ensure("the image benchmark", &[PACKAGES, fixtures::PACKAGES].concat())?;
        let entry = cache::get_or_make("images", &digest::key(&[RECIPE, INCLUDED]), |entry| {
            terminal::step("Making the benchmark's images (debootstrap, umoci); minutes, once");
            if !debian::is_root()? {
                bail!(
                    "debootstrap needs root; run this once as root: sudo cargo xtask bench image"
                );
            }
            let work = tempfile::tempdir_in(entry).context("create a temporary folder")?;
            let images = Self::at(entry);
            let root = work.path().join("root");
            fixtures::debootstrap(&root, INCLUDED, &work.path().join("debootstrap.log"))?;
            images.make_archive(&root, work.path())?;
            images.make_layout(&root, work.path())?;
            images.fill_registry(work.path())
        })?;
        Ok(Self::at(&entry))
    }

    fn at(entry: &Path) -> Self {
        let [layout, registry, archive] =
            ["layout", "registry", "archive.tar"].map(|name| entry.join(name));
        Self { layout, registry, archive }
    }

    /// Writes the archive's layout into the folder `into`.
    pub(super) fn unpack_archive(&self, into: &Path) -> Result<()> {
        fs::create_dir(into).with_context(|| format!("create {}", into.display()))?;
        Tool::new("tar").args(["--extract", "--file"]).arg(&self.archive).arg("-C").arg(into).run()
    }

    /// One layer: the root, and its folders of small files again and again.
    fn make_archive(&self, root: &Path, work: &Path) -> Result<()> {
        let large = work.join("large");
        copy_tree(root, &large)?;
        for copy in 0..COPIES {
            for folder in SMALL {
                copy_tree(&root.join(folder), &large.join(format!("copy-{copy}")).join(folder))?;
            }
        }
        let layout = work.join("large-layout");
        let tag = Tag { name: TAG, config: json!({ "Cmd": ["/bin/bash"] }) };
        oci::write_layout(&large, &tag, &layout)?;
        oci::write_archive(&layout, &self.archive)
    }

    /// Four layers: the root without the next two, a compiler, Python, and one that deletes and changes.
    fn make_layout(&self, root: &Path, work: &Path) -> Result<()> {
        let image = format!("{}:{TAG}", self.layout.display());
        Tool::new("umoci").args(["init", "--layout"]).arg(&self.layout).run()?;
        Tool::new("umoci").args(["new", "--image", &image]).run()?;
        let changes = work.join("changes");
        let put = |name: &str, content: &str| {
            let path = changes.join(name);
            let folder = path.parent().context("a file lies in a folder")?;
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
            fs::write(&path, content).with_context(|| format!("write {}", path.display()))
        };
        put("usr/share/.wh.man", "")?;
        put("usr/share/doc/.wh..wh..opq", "")?;
        put("etc/motd", "made for the benchmarks of microsandbox\n")?;
        let apart: Vec<String> = [TOOLCHAIN, PYTHON]
            .concat()
            .iter()
            .map(|folder| format!("--exclude=./{folder}"))
            .collect();
        let inside =
            |folders: &[&str]| folders.iter().map(|folder| format!("./{folder}")).collect();
        let all = vec![".".to_owned()];
        for (folder, words) in [
            (root, [apart, all.clone()].concat()),
            (root, inside(TOOLCHAIN)),
            (root, inside(PYTHON)),
            (&changes, all),
        ] {
            let tar = work.join("layer.tar");
            let create = ["--create", "--sort=name", "--file"];
            Tool::new("tar").args(create).arg(&tar).arg("-C").arg(folder).args(words).run()?;
            let add = ["raw", "add-layer", "--image", &image];
            Tool::new("umoci").args(add).arg(&tar).run()?;
        }
        Tool::new("umoci").args(["gc", "--layout"]).arg(&self.layout).run()
    }

    fn fill_registry(&self, work: &Path) -> Result<()> {
        let registry = Registry::start(&self.registry, work)?;
        Tool::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{TAG}", self.layout.display()))
            .arg(format!("docker://{}/{PULLED}", registry.address))
            .run()
    }
}

/// A copy of `from` at `to`; links would do on disk, but `tar` would store them as links.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("a copy lies in a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    Tool::new("cp").args(["--archive", "--reflink=auto"]).arg(from).arg(to).run()
}
