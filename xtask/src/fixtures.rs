//! Images that tests and quickstart use: OCI layouts, made by real tools and kept in the cache.
//!
//! ```text
//! busybox              one small layer, tag `latest`
//! busybox-configured   the same layer, every field of the configuration set, tag `configured`
//! debian-py            Debian, then Python, then a layer that deletes and changes, tag `py`
//! ```
//!
//! The key of each is its recipe, so that a changed recipe makes a new image.

use std::{
    fs,
    os::unix,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::{
    cache,
    debian::{self, Package},
    digest,
    oci::{self, Tag},
    process::Tool,
    terminal,
};

/// Tools that make the Debian image.
pub(crate) const PACKAGES: &[Package] = &[
    Package { name: "debootstrap", provides: "/usr/sbin/debootstrap" },
    Package { name: "umoci", provides: "umoci" },
];

/// Raised when the code below changes what an image holds.
const BUSYBOX_RECIPE: &str = "busybox 1";
const DEBIAN_RECIPE: &str = "debian-py 1";

const SUITE: &str = "bookworm";
const MIRROR: &str = "http://deb.debian.org/debian";

/// What belongs to Python's layer: taken aside while the base is packed, so that one debootstrap
/// run makes both and no command has to run inside the root.
const PYTHON: [&str; 3] = ["usr/lib/python3", "usr/lib/python3.11", "usr/bin/python3.11"];

/// Folder of the two small images: `busybox` and `busybox-configured`.
pub(crate) fn busybox() -> Result<PathBuf> {
    cache::get_or_make("images", &digest::key(&[BUSYBOX_RECIPE]), |entry| {
        terminal::step("Making the busybox images");
        let work = tempfile::tempdir().context("create a temporary folder")?;
        let root = busybox_root(work.path())?;
        let [latest, configured] = busybox_tags();
        oci::write_layout(&root, &latest, &entry.join("busybox"))?;
        oci::write_layout(&root, &configured, &entry.join("busybox-configured"))
    })
}

/// Folder of the Debian image with Python, `debian-py`. Needs root, as debootstrap does.
pub(crate) fn debian_py() -> Result<PathBuf> {
    let key = digest::key(&[DEBIAN_RECIPE, SUITE, MIRROR]);
    cache::get_or_make("images", &key, |entry| {
        terminal::step("Making the Debian image with Python (debootstrap, umoci); minutes, once");
        if !debian::is_root()? {
            bail!("debootstrap needs root; run this once as root: sudo cargo xtask test");
        }
        DebianImage { layout: &entry.join("debian-py"), bundle: &entry.join("bundle") }.make()
    })
}

fn busybox_root(work: &Path) -> Result<PathBuf> {
    let files = work.join("files");
    debian::fetch("busybox-static", &files)?;
    let root = work.join("root");
    for folder in ["bin", "dev", "etc", "proc", "root", "sys", "tmp", "usr/bin", "var"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    let busybox = root.join("bin/busybox");
    fs::copy(files.join("bin/busybox"), &busybox).context("take busybox from its package")?;
    let applets = Tool::new(&busybox).arg("--list").output()?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        unix::fs::symlink("busybox", root.join("bin").join(applet))
            .with_context(|| format!("link {applet}"))?;
    }
    let user = "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/tmp:/bin/sh\n";
    fs::write(root.join("etc/passwd"), user).context("write the users")?;
    let group = "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n";
    fs::write(root.join("etc/group"), group).context("write the groups")?;
    Ok(root)
}

fn busybox_tags() -> [Tag; 2] {
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let latest = json!({ "Env": [path], "Cmd": ["sh"] });
    let configured = json!({
        "Env": [path, "GREETING=hello from the image"],
        "User": "guest",
        "WorkingDir": "/tmp",
        "Entrypoint": ["/bin/sh", "-c"],
        "Cmd": ["echo $GREETING from $(id -un) in $(pwd)"],
        "Labels": { "purpose": "tests" },
        "StopSignal": "SIGTERM",
    });
    [Tag { name: "latest", config: latest }, Tag { name: "configured", config: configured }]
}

/// An image under construction: a layout, and a bundle with the root as umoci unpacks it.
struct DebianImage<'a> {
    layout: &'a Path,
    bundle: &'a Path,
}

impl DebianImage<'_> {
    fn make(&self) -> Result<()> {
        let image = self.image();
        Tool::new("umoci").args(["init", "--layout"]).arg(self.layout).run()?;
        self.umoci(&["new"])?.run()?;
        self.umoci(&["unpack"])?.arg(self.bundle).run()?;
        let root = self.bundle.join("rootfs");

        let aside = self.bundle.with_file_name("aside");
        let log = self.bundle.with_file_name("debootstrap.log");
        debootstrap(&root, "--include=python3", &log)?;
        exchange(&root, &aside)?;
        self.commit("base")?;
        exchange(&aside, &root)?;
        unix::fs::symlink("python3.11", root.join("usr/bin/python"))
            .context("link python in the root")?;
        self.commit("python")?;
        change(&root)?;
        self.commit("changes")?;

        Tool::new("umoci")
            .args(["config", "--image", &image, "--config.cmd", "/bin/bash"])
            .args(["--config.env", "LANG=C.UTF-8"])
            .args(["--config.workingdir", "/root"])
            .run()?;
        for folder in [self.bundle, &aside] {
            fs::remove_dir_all(folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        Tool::new("umoci").args(["gc", "--layout"]).arg(self.layout).run()
    }

    fn commit(&self, what: &str) -> Result<()> {
        terminal::note(format_args!("packing the layer: {what}"));
        self.umoci(&["repack", "--refresh-bundle"])?
            .args(["--history.created_by", what])
            .arg(self.bundle)
            .run()
    }

    fn umoci(&self, words: &[&str]) -> Result<Tool> {
        Ok(Tool::new("umoci").args(words).args(["--image", &self.image()]))
    }

    fn image(&self) -> String {
        format!("{}:py", self.layout.display())
    }
}

/// A minimal Debian with the packages of `include` (`--include=…`) in the folder `root`. Needs root.
pub(crate) fn debootstrap(root: &Path, include: &str, log: &Path) -> Result<()> {
    terminal::note("debootstrap");
    Tool::new("/usr/sbin/debootstrap")
        .args(["--variant=minbase", include, SUITE])
        .arg(root)
        .arg(MIRROR)
        .run_logged(log, "lines of debootstrap")?;
    for rest in ["var/cache/apt/archives", "var/lib/apt/lists", "debootstrap"] {
        let path = root.join(rest);
        if path.exists() {
            fs::remove_dir_all(&path).with_context(|| format!("remove {rest}"))?;
        }
    }
    Ok(())
}

/// Moves Python's files from one root to the other.
fn exchange(from: &Path, to: &Path) -> Result<()> {
    for part in PYTHON {
        let target = to.join(part);
        let folder = target.parent().context("a part lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        fs::rename(from.join(part), &target).with_context(|| format!("move {part}"))?;
    }
    Ok(())
}

/// What the last layer holds: deletions (files and a whole folder), a folder emptied and filled
/// again, a changed file, a changed mode, links and new files.
fn change(root: &Path) -> Result<()> {
    use unix::fs::PermissionsExt as _;

    let step = |what: &'static str| move || format!("change {what} in the root");
    fs::remove_dir_all(root.join("usr/share/doc")).with_context(step("usr/share/doc"))?;
    fs::create_dir(root.join("usr/share/doc")).with_context(step("usr/share/doc"))?;
    fs::write(root.join("usr/share/doc/README"), "emptied and filled again\n")
        .with_context(step("usr/share/doc/README"))?;
    fs::remove_dir_all(root.join("usr/share/man")).with_context(step("usr/share/man"))?;
    fs::remove_file(root.join("etc/debian_version")).with_context(step("etc/debian_version"))?;
    fs::write(root.join("etc/motd"), "made for the tests of microsandbox\n")
        .with_context(step("etc/motd"))?;
    let sticky = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(root.join("opt"), sticky).with_context(step("opt"))?;
    fs::write(root.join("opt/original"), "one file, two names\n").with_context(step("opt"))?;
    fs::hard_link(root.join("opt/original"), root.join("opt/linked")).with_context(step("opt"))?;
    unix::fs::symlink("original", root.join("opt/symbolic")).with_context(step("opt"))
}
