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
use serde_json::Value;

use crate::{
    cache,
    cli::{SetupOptions, TestOptions},
    debian::{self, Package},
    digest, env, fixtures, one_file,
    process::{self, Tool},
    setup::{self, Installation},
    terminal,
    workspace::{self, TEST_FEATURES},
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

/// The tests of sandboxes from end to end: where both VMMs work they are run with each.
const VM_TESTS: [&str; 4] =
    ["--package", "microsandbox", "--features", "microsandbox/stop-at-step"];

/// Debian's registry server. Installing its package starts a service on port 5000, so its program
/// is taken out of the package instead.
const REGISTRY: &str = "docker-registry";

/// Prepares everything and runs `cargo test`.
pub(crate) fn run(options: &TestOptions) -> Result<()> {
    let Prepared { variables, installed } = prepare()?;
    if options.prepare {
        for (name, value) in variables {
            terminal::result(format_args!("export {name}={}", value.display()));
        }
        return Ok(());
    }
    let mut arguments = options.arguments.clone();
    let everything = arguments.is_empty();
    if everything {
        arguments.extend(["--workspace", "--features", TEST_FEATURES].map(str::to_owned));
    }
    cargo_test(&arguments, &variables, &[])?;
    if !everything {
        return Ok(());
    }
    if kvm_works(&findings(&installed)?) {
        // The first run has used libkrun there, as users do.
        cargo_test(&VM_TESTS.map(str::to_owned), &variables, &[(env::MSB_VMM, "qemu")])?;
    } else {
        terminal::note("KVM does not work here: libkrun has started a kernel and run no sandbox");
    }
    one_file::run(&installed.guest)
}

fn cargo_test(
    arguments: &[String],
    variables: &[(&str, PathBuf)],
    more: &[(&str, &str)],
) -> Result<()> {
    terminal::step(format_args!("cargo test --release {}", arguments.join(" ")));
    let mut cargo = Tool::cargo().args(["test", "--release"]).args(arguments);
    for (name, value) in variables {
        cargo = cargo.env(name, value);
    }
    for (name, value) in more {
        cargo = cargo.env(name, value);
    }
    cargo.in_dir(workspace::root()).run()
}

/// What the installed `msb` says of this machine.
fn findings(installed: &Installation) -> Result<Value> {
    let text = Tool::new(&installed.msb)
        .args(["doctor", "--format", "json"])
        .env(env::MSB_HOME, &installed.home)
        .output()?;
    serde_json::from_str(&text).context("read what msb doctor says")
}

/// Whether sandboxes run with libkrun by themselves here, which only the probe can tell.
fn kvm_works(findings: &Value) -> bool {
    let findings = findings.as_array().map(Vec::as_slice).unwrap_or_default();
    findings.iter().any(|finding| finding["name"] == "kvm" && finding["verdict"] == "ok")
}

/// What preparing has led to.
struct Prepared {
    /// How tests find what they need.
    variables: [(&'static str, PathBuf); 3],
    installed: Installation,
}

/// Installs tools, makes images and the guest, and says how tests find them.
fn prepare() -> Result<Prepared> {
    debian::ensure("the tests", &[PACKAGES, fixtures::PACKAGES].concat())?;
    let home = workspace::target()?.join("test-home");
    let images = collect_images(&home)?;
    let registry = registry_program()?;
    let folder = registry.parent().map(Path::to_owned);
    // Last, as the folder of an installed one has other programs too.
    let path = std::env::join_paths(env::path().into_iter().chain(folder))
        .context("put the registry on PATH")?;
    let installed = setup::install(&SetupOptions::default(), &home)?;
    let variables = [
        (env::MSB_TEST_GUEST, installed.guest.clone()),
        (env::MSB_TEST_IMAGES, images),
        (env::PATH, PathBuf::from(path)),
    ];
    Ok(Prepared { variables, installed })
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_drivers_are_tested_where_the_probe_has_passed_and_nowhere_else() {
        let finding = |name: &str, verdict: &str| json!({ "name": name, "verdict": verdict });
        for (findings, works) in [
            (json!([finding("qemu", "ok"), finding("kvm", "ok")]), true),
            (json!([finding("qemu", "ok"), finding("kvm", "warn")]), false),
            (json!([finding("qemu", "ok")]), false),
            (json!({}), false),
        ] {
            assert_eq!(kvm_works(&findings), works, "{findings}");
        }
    }
}
