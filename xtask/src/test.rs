//! `cargo xtask test`: every test of the workspace, those that boot guests included.
//!
//! Tests find what they need by two variables, see [`mod@env`]: a guest to boot and images to boot it
//! with. Tools that images are made and judged with are installed first.

use std::{
    fs,
    os::unix,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    cache,
    cli::{SetupOptions, TestOptions},
    debian::{self, Package},
    digest, env, fixtures, one_file,
    process::{self, Tool},
    setup, terminal, workspace,
};

/// Programs that tests judge images and disks with.
const PACKAGES: &[Package] = &[
    Package { name: "skopeo", provides: "skopeo" },
    Package { name: "erofs-utils", provides: "fsck.erofs" },
    Package { name: "e2fsprogs", provides: "/usr/sbin/e2fsck" },
    Package { name: "qemu-utils", provides: "qemu-img" },
    Package { name: "strace", provides: "strace" },
    Package { name: "tmux", provides: "tmux" },
    Package { name: "openssl", provides: "openssl" },
    Package { name: "python3", provides: "python3" },
];

/// Feature with which tests kill processes at a step of their work.
const STOP_POINTS: &str = "microsandbox/stop-at-step";

/// Debian's registry server. Installing its package starts a service on port 5000, so its program
/// is taken out of the package instead.
const REGISTRY: &str = "docker-registry";

/// Prepares everything and runs `cargo test`.
pub(crate) fn run(options: &TestOptions) -> Result<()> {
    let variables = prepare()?;
    if options.prepare {
        for (name, value) in variables {
            terminal::result(format_args!("export {name}={}", value.display()));
        }
        return Ok(());
    }
    let mut arguments = options.arguments.clone();
    let everything = arguments.is_empty();
    if everything {
        arguments.extend(["--workspace", "--features", STOP_POINTS].map(str::to_owned));
    }
    terminal::step(format_args!("cargo test --release {}", arguments.join(" ")));
    let mut cargo = Tool::cargo().args(["test", "--release"]).args(arguments);
    for (name, value) in &variables {
        cargo = cargo.env(name, value);
    }
    cargo.in_dir(workspace::root()).run()?;
    let [(_, guest), ..] = &variables;
    if everything { one_file::run(guest) } else { Ok(()) }
}

/// Installs tools, makes images and the guest, and says how tests find them.
fn prepare() -> Result<[(&'static str, PathBuf); 3]> {
    debian::ensure("the tests", &[PACKAGES, fixtures::PACKAGES].concat())?;
    let home = workspace::target()?.join("test-home");
    let images = collect_images(&home)?;
    let registry = registry_program()?;
    let folder = registry.parent().map(Path::to_owned);
    // Last, as the folder of an installed one has other programs too.
    let path = std::env::join_paths(env::path().into_iter().chain(folder))
        .context("put the registry on PATH")?;
    let installed = setup::install(&SetupOptions::default(), &home)?;
    Ok([
        (env::MSB_TEST_GUEST, installed.guest),
        (env::MSB_TEST_IMAGES, images),
        (env::PATH, PathBuf::from(path)),
    ])
}

/// One folder with every image, as links into the cache.
fn collect_images(home: &Path) -> Result<PathBuf> {
    let folder = home.join("images");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let (small, debian) = (fixtures::busybox()?, fixtures::debian_py()?);
    for (entry, name) in
        [(&small, "busybox"), (&small, "busybox-configured"), (&debian, "debian-py")]
    {
        unix::fs::symlink(entry.join(name), folder.join(name))
            .with_context(|| format!("link the image {name}"))?;
    }
    Ok(folder)
}

/// The registry program: the installed one, or one out of its package.
pub(crate) fn registry_program() -> Result<PathBuf> {
    if let Some(installed) = process::find(REGISTRY) {
        return Ok(installed);
    }
    let entry = cache::get_or_make("tools", &digest::key(&[REGISTRY]), |entry| {
        terminal::step(format_args!("Fetching {REGISTRY}"));
        debian::fetch(REGISTRY, entry).map(|_version| ())
    })?;
    Ok(entry.join("usr/bin").join(REGISTRY))
}
