//! Debian packages: which are missing, installing them, and taking files out of one.
//!
//! Nothing here changes the machine's apt set-up. Installing needs root; taking a package's files
//! does not: it goes through package lists of its own where the machine's lists lack the package.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    process::{self, Tool},
    terminal,
};

/// Where [`fetch`] looks when the machine's own lists do not have a package. Signed, so plain
/// HTTP is enough, and a machine without CA certificates can read it.
const OWN_SOURCES: &str = "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
     http://deb.debian.org/debian-security bookworm-security main\n\
     deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
     http://deb.debian.org/debian bookworm main\n";

/// A package, and the program that shows it is there.
///
/// Going by programs instead of the package database makes a tool count that came another way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Package {
    /// Name for apt.
    pub(crate) name: &'static str,
    /// Program on `PATH`, or an absolute path, that the package provides.
    pub(crate) provides: &'static str,
}

impl Package {
    fn is_here(self) -> bool {
        if self.provides.starts_with('/') {
            Path::new(self.provides).exists()
        } else {
            process::find(self.provides).is_some()
        }
    }
}

/// Names of packages, as on a command line.
struct Names<'a>(&'a [Package]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, package) in self.0.iter().enumerate() {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{}", package.name)?;
        }
        Ok(())
    }
}

/// Installs what is missing of `packages`, or fails with the line to type.
pub(crate) fn ensure(purpose: &str, packages: &[Package]) -> Result<()> {
    let missing: Vec<Package> = packages.iter().copied().filter(|p| !p.is_here()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = Names(&missing);
    if !has_apt() {
        bail!(
            "{purpose} needs the programs of these Debian packages: {names}; \
             install them the way of your distribution, then run this again"
        );
    }
    if !is_root()? {
        bail!("{purpose} needs packages; type this, then run this again:\n  {}", line(&names));
    }
    terminal::step(format_args!("Installing packages for {purpose}: {names}"));
    if !install(&missing)? {
        terminal::note("reading the package lists first");
        apt_get().args(["-qq", "update"]).run()?;
        if !install(&missing)? {
            bail!("apt could not install {names}; type this to see why:\n  {}", line(&names));
        }
    }
    match missing.iter().find(|package| !package.is_here()) {
        None => Ok(()),
        Some(package) => {
            bail!("{} is installed, but {} is not there", package.name, package.provides)
        }
    }
}

/// Whether this machine has Debian's package tools.
pub(crate) fn has_apt() -> bool {
    process::find("apt-get").is_some() && process::find("dpkg").is_some()
}

/// Whether we may install packages.
pub(crate) fn is_root() -> Result<bool> {
    Ok(Tool::new("id").arg("-u").output()? == "0")
}

/// Downloads the newest version of `package` and unpacks its files into `into`.
///
/// Returns the version. Neither the package database nor the apt configuration is touched.
pub(crate) fn fetch(package: &str, into: &Path) -> Result<String> {
    let work = tempfile::tempdir().context("create a temporary folder")?;
    let download = |lists: &Lists| {
        Tool::new("apt-get")
            .args(lists.options())
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .in_dir(work.path())
            .run()
    };
    if Lists::Machine.have(package)? {
        download(&Lists::Machine)?;
    } else {
        terminal::note(format_args!(
            "{package} is not in this machine's package lists; asking Debian's"
        ));
        let lists = Lists::own(work.path())?;
        download(&lists)?;
    }
    let archive = only_deb(work.path())?;
    let field = |name| Tool::new("dpkg-deb").arg("--field").arg(&archive).arg(name).output();
    let version = field("Version")?;
    Tool::new("dpkg-deb").arg("--extract").arg(&archive).arg(into).run()?;
    Ok(version)
}

/// The package lists apt reads.
enum Lists {
    /// The machine's own.
    Machine,
    /// Ours, in a folder that goes away with the temporary one around it.
    Own(PathBuf),
}

impl Lists {
    /// Makes lists of our own in `folder` and reads [`OWN_SOURCES`] into them.
    fn own(folder: &Path) -> Result<Self> {
        let folder = folder.join("apt");
        for part in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(part)).context("create folders for apt")?;
        }
        fs::write(folder.join("sources.list"), OWN_SOURCES).context("write a list for apt")?;
        let lists = Self::Own(folder);
        Tool::new("apt-get")
            .args(lists.options())
            .args(["-qq", "-o", "APT::Sandbox::User=root", "update"])
            .run()
            .context("if the key is missing, install the package debian-archive-keyring")?;
        Ok(lists)
    }

    fn have(&self, package: &str) -> Result<bool> {
        Tool::new("apt-cache").args(self.options()).args(["show", package]).succeeds()
    }

    fn options(&self) -> Vec<String> {
        let Self::Own(folder) = self else { return Vec::new() };
        let folder = folder.display();
        [
            format!("Dir::Etc::sourcelist={folder}/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State::lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
        ]
        .into_iter()
        .flat_map(|option| ["-o".to_owned(), option])
        .collect()
    }
}

fn install(packages: &[Package]) -> Result<bool> {
    let names = packages.iter().map(|package| package.name);
    apt_get().args(["-qq", "-y", "--no-install-recommends", "install"]).args(names).succeeds()
}

fn apt_get() -> Tool {
    Tool::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive")
}

fn line(names: &Names<'_>) -> String {
    format!("sudo apt-get install -y --no-install-recommends {names}")
}

fn only_deb(folder: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_is_missing_only_when_its_program_is() {
        for (provides, expected) in [("sh", true), ("/bin/sh", true), ("no-such", false)] {
            assert_eq!(Package { name: "any", provides }.is_here(), expected, "{provides}");
        }
    }

    #[test]
    fn own_lists_are_named_to_apt_and_the_machines_are_not() {
        assert!(Lists::Machine.options().is_empty());
        let options = Lists::Own("/own".into()).options().join(" ");
        assert!(options.contains("Dir::Etc::sourcelist=/own/sources.list"), "{options}");
        assert!(options.contains("Dir::Etc::sourceparts=-"), "{options}");
    }
}
