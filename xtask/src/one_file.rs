//! One file is enough: the example `embedded`, alone in an empty directory, as an ordinary user.
//!
//! The last of `cargo xtask test`, because no test can build a program with other features than its
//! own.

use std::{
    fs,
    os::unix::{self, fs::PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};

use crate::{debian, process::Tool, terminal, workspace};

const EXAMPLE: &str = "embedded";
const FEATURE: &str = "embed-guest";
/// What its build script takes the guest from.
const MSB_EMBED_GUEST: &str = "MSB_EMBED_GUEST";

/// The user that owns nothing, `nobody` on Debian.
const NOBODY: u32 = 65534;

/// Builds the example with the guest in the folder `guest`, and runs it with nothing around it.
pub(crate) fn run(guest: &Path) -> Result<()> {
    terminal::step("Building a program that carries its guest");
    Tool::cargo()
        .args(["build", "--release", "--package", "microsandbox", "--example", EXAMPLE])
        .args(["--features", FEATURE])
        .env(MSB_EMBED_GUEST, guest)
        .in_dir(workspace::root())
        .run()?;
    let built = workspace::target()?.join("release/examples").join(EXAMPLE);

    let folder = tempfile::tempdir().context("create a temporary folder")?;
    let home = folder.path().join("home");
    let alone = folder.path().join(EXAMPLE);
    fs::create_dir(&home).with_context(|| format!("create {}", home.display()))?;
    fs::copy(&built, &alone).with_context(|| format!("copy {}", built.display()))?;
    terminal::step("Running it alone, as an ordinary user with an empty home");
    let said = as_nobody(&folder, &home)?
        .args(["env", "-i", "PATH=/usr/bin:/bin"])
        .arg(format!("HOME={}", home.display()))
        .arg(&alone)
        .output()?;
    ensure!(said.starts_with("Hello from process "), "it said {said:?}");
    terminal::note(&said);
    let size = fs::metadata(&alone).context("measure the program")?.len();
    terminal::note(format_args!("{} MiB in one file", size >> 20));
    Ok(())
}

/// What starts a program as an ordinary user, who this may be already.
fn as_nobody(folder: &tempfile::TempDir, home: &Path) -> Result<Tool> {
    if !debian::is_root()? {
        return Ok(Tool::new("setpriv").arg("--no-new-privs"));
    }
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), open).context("open the folder to everybody")?;
    unix::fs::chown(home, Some(NOBODY), Some(NOBODY)).context("give the home away")?;
    let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
    Ok(Tool::new("setpriv").args(ids).args(["--clear-groups", "--no-new-privs"]))
}
