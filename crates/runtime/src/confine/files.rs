//! The files a process may open: a list of rules, and the Landlock ruleset that enforces it.
//!
//! A rule names a path when the ruleset is made and holds for what is there then, not for what may
//! be put in its place. Everything without a rule is refused, whatever the file modes say.

use std::{io, path::PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, Scope, make_bitflags,
};
use serde::{Deserialize, Serialize};

use crate::sys::confine as sys;

/// The newest interface whose every right was looked at here. The kernel leaves out what it does not
/// know; what a newer one adds would be refused without anybody having tried.
const TESTED: ABI = ABI::V7;

/// A path and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRule {
    pub(crate) path: PathBuf,
    pub(crate) access: Access,
}

/// What may be done with a file, or with all files below a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Access {
    /// Read it.
    Read,
    /// Execute and read it.
    Execute,
    /// Read and write it, as it is there: neither make nor remove it.
    Write,
    /// Read and write it, and send it commands.
    Device,
    /// Everything below a directory, links and pipes included: make, change, rename, remove.
    Share,
    /// Everything below a directory: make, change, rename, remove.
    Tree,
    /// Remove empty directories below it.
    RemoveDirectories,
}

impl Access {
    fn rights(self) -> BitFlags<AccessFs> {
        match self {
            Self::Read => make_bitflags!(AccessFs::{ReadFile | ReadDir}),
            Self::Execute => make_bitflags!(AccessFs::{Execute | ReadFile}),
            Self::Write => make_bitflags!(AccessFs::{ReadFile | WriteFile | Truncate}),
            Self::Device => make_bitflags!(AccessFs::{ReadFile | WriteFile | IoctlDev}),
            Self::Share => Self::Tree.rights() | make_bitflags!(AccessFs::{MakeFifo | MakeSym}),
            Self::Tree => make_bitflags!(AccessFs::{
                ReadFile | ReadDir | WriteFile | Truncate | Refer
                | MakeReg | MakeDir | MakeSock | RemoveFile | RemoveDir
            }),
            Self::RemoveDirectories => AccessFs::RemoveDir.into(),
        }
    }
}

/// A rule for each path.
pub(crate) fn rules<P: Into<PathBuf>>(
    access: Access,
    paths: impl IntoIterator<Item = P>,
) -> impl Iterator<Item = FileRule> {
    paths.into_iter().map(move |path| FileRule { path: path.into(), access })
}

/// What every process of ours needs to be started again: its own program, and the libraries and the
/// loader that are in this process for it.
pub(crate) fn own_program() -> Vec<FileRule> {
    rules(Access::Execute, sys::loaded_objects())
        .chain(rules(Access::Execute, ["/proc/self/exe"]))
        .chain(rules(Access::Read, ["/etc/ld.so.cache"]))
        .collect()
}

/// The ruleset that allows what the rules allow and nothing else: no other file, no TCP port, no
/// signal and no abstract socket of a process outside.
///
/// A path that is not there needs no rule.
///
/// # Errors
/// What the kernel said of a path or the ruleset.
pub(crate) fn ruleset(rules: &[FileRule]) -> io::Result<RulesetCreated> {
    let mut ruleset = Ruleset::default()
        .handle_access(AccessFs::from_all(TESTED))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(TESTED)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(TESTED)))
        .and_then(Ruleset::create)
        .map_err(io::Error::other)?;
    for FileRule { path, access } in rules {
        let file = match PathFd::new(path) {
            Ok(file) => file,
            Err(PathFdError::OpenCall { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let rights = access.rights();
        let rights = match path.is_dir() {
            true => rights,
            false => rights & AccessFs::from_file(TESTED),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(file, rights)).map_err(io::Error::other)?;
    }
    Ok(ruleset)
}
