//! Where the kernel's source comes from.
//!
//! In order: what the user names; what was fetched before; Debian's `linux-source-6.12`; the
//! tarball of kernel.org. What was fetched stays until `--update`, so that a point release does
//! not cost a rebuild nobody asked for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cache,
    cli::KernelOptions,
    debian, digest,
    process::{self, Tool},
    terminal, workspace,
};

/// The long-term series; EROFS with blocks of 512 bytes needs 6.4 or later.
const SERIES: &str = "6.12";
/// Debian's package of the series.
const DEBIAN_PACKAGE: &str = "linux-source-6.12";
/// Tarball for machines without apt. Checksum as in kernel.org's `sha256sums.asc`.
const KERNEL_ORG_VERSION: &str = "6.12.62";
const KERNEL_ORG_URL: &str = "https://cdn.kernel.org/pub/linux/kernel/v6.x/linux-6.12.62.tar.xz";
const KERNEL_ORG_SHA256: &str = "13e2c685ac8fab5dd992dd105732554dae514aef350c2a8c7418e7b74eb62c13";

/// Name of the tarball in its cache entry.
const TARBALL: &str = "linux.tar.xz";
/// Parts of the source that no configuration of ours reads: register tables of graphics cards,
/// device trees, self-tests. A third of what would be written.
const NOT_UNPACKED: [&str; 3] =
    ["*/drivers/gpu/drm/amd/include", "*/arch/*/boot/dts", "*/tools/testing"];

/// A kernel source that is on this machine.
#[derive(Debug)]
pub(super) struct Source {
    /// A folder or a .tar.xz.
    path: PathBuf,
    /// What this is, for people and for the hash.
    identity: String,
}

impl Source {
    /// The first of the sources listed above that there is.
    pub(super) fn find(options: &KernelOptions) -> Result<Self> {
        match &options.source {
            Some(path) => Self::given(path),
            None => Self::fetched(options.update),
        }
    }

    /// Which source this is, with its version.
    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Writes the source tree into the empty folder `into`.
    pub(super) fn unpack(&self, into: &Path) -> Result<()> {
        if self.path.is_dir() {
            Tool::new("cp")
                .args(["-a", "--reflink=auto"])
                .arg(self.path.join("."))
                .arg(into)
                .run()?;
            return Tool::new("make").args(["-s", "-C"]).arg(into).arg("mrproper").run();
        }
        let excludes = NOT_UNPACKED.map(|pattern| format!("--exclude={pattern}"));
        Tool::new("tar")
            .args(["--extract", "--xz", "--strip-components=1"])
            .args(excludes)
            .arg("--directory")
            .arg(into)
            .arg("--file")
            .arg(&self.path)
            .run()
    }

    /// A tree counts as changed when its path or its Makefile (version, extra version) does.
    fn given(path: &Path) -> Result<Self> {
        let path = path.canonicalize().with_context(|| format!("find {}", path.display()))?;
        let identity = if path.is_dir() {
            let makefile = digest::of_file(&path.join("Makefile"))
                .with_context(|| format!("{} is not a kernel source", path.display()))?;
            format!("tree {} {makefile}", path.display())
        } else {
            format!("tarball {}", digest::of_file(&path)?)
        };
        Ok(Self { path, identity })
    }

    fn fetched(update: bool) -> Result<Self> {
        let folder = workspace::cache()?.join("kernel-source");
        fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        let _lock = cache::lock(&folder)?;
        if !update && let Some(source) = Self::fetched_last(&folder)? {
            return Ok(source);
        }
        let work = cache::work_folder(&folder)?;
        let identity = fetch(work.path())?;
        let entry = folder.join(&identity);
        if !entry.exists() {
            fs::rename(work.path(), &entry).with_context(|| format!("keep {}", entry.display()))?;
        }
        Ok(Self { path: entry.join(TARBALL), identity })
    }

    fn fetched_last(folder: &Path) -> Result<Option<Self>> {
        let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
        let sources = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            if cache::is_partial(&entry.file_name()) {
                return None;
            }
            let path = entry.path().join(TARBALL);
            let identity = entry.file_name().into_string().ok()?;
            let fetched = fs::metadata(&path).ok()?.modified().ok()?;
            Some((fetched, Self { path, identity }))
        });
        Ok(sources.max_by_key(|(fetched, _)| *fetched).map(|(_, source)| source))
    }
}

/// Fetches a tarball into `work` and says what it is.
fn fetch(work: &Path) -> Result<String> {
    if debian::has_apt() {
        match from_debian(work) {
            Ok(identity) => return Ok(identity),
            Err(error) => terminal::note(format_args!(
                "{DEBIAN_PACKAGE} cannot be had ({error:#}); trying kernel.org"
            )),
        }
    }
    from_kernel_org(work)
}

fn from_debian(work: &Path) -> Result<String> {
    terminal::step(format_args!("Fetching Debian's {DEBIAN_PACKAGE} (150 MB)"));
    let files = work.join("files");
    let version = debian::fetch(DEBIAN_PACKAGE, &files)?;
    let tarball = files.join(format!("usr/src/{DEBIAN_PACKAGE}.tar.xz"));
    publish(&tarball, &work.join(TARBALL))?;
    fs::remove_dir_all(&files).with_context(|| format!("remove {}", files.display()))?;
    Ok(format!("debian-{version}"))
}

fn from_kernel_org(work: &Path) -> Result<String> {
    terminal::step(format_args!("Fetching Linux {KERNEL_ORG_VERSION} from kernel.org (150 MB)"));
    let partial = work.join("download");
    let tool = if process::find("curl").is_some() {
        Tool::new("curl").args(["--fail", "--location", "--silent", "--show-error", "--output"])
    } else if process::find("wget").is_some() {
        Tool::new("wget").args(["--quiet", "--output-document"])
    } else {
        bail!("neither curl nor wget is installed; fetch {KERNEL_ORG_URL} and name it by --source");
    };
    tool.arg(&partial).arg(KERNEL_ORG_URL).run().with_context(|| {
        format!("fetch a source of Linux {SERIES}; one you have can be named by --source")
    })?;
    let digest = digest::of_file(&partial)?;
    if digest != KERNEL_ORG_SHA256 {
        bail!("{KERNEL_ORG_URL} has sha256 {digest}, expected {KERNEL_ORG_SHA256}");
    }
    publish(&partial, &work.join(TARBALL))?;
    Ok(format!("kernel.org-{KERNEL_ORG_VERSION}"))
}

fn publish(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("move {} to {}", from.display(), to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_tarball_is_of_the_series() {
        assert!(KERNEL_ORG_VERSION.starts_with(SERIES));
        assert!(KERNEL_ORG_URL.ends_with(&format!("linux-{KERNEL_ORG_VERSION}.tar.xz")));
        assert!(DEBIAN_PACKAGE.ends_with(SERIES));
    }

    #[test]
    fn folder_without_a_makefile_is_named_as_no_source() {
        let folder = tempfile::tempdir().unwrap();
        let error = Source::given(folder.path()).unwrap_err();
        assert!(error.to_string().contains("is not a kernel source"), "{error}");
    }

    #[test]
    fn source_fetched_last_is_used_and_half_fetched_ones_are_not() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Source::fetched_last(folder.path()).unwrap().is_none());
        for name in ["partial-x", "debian-6.12.9"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join(TARBALL), "").unwrap();
        }
        let found = Source::fetched_last(folder.path()).unwrap().unwrap();
        assert_eq!(found.identity(), "debian-6.12.9");
    }
}
