//! `cargo xtask kernel`: the guest kernel, built once for each set of inputs.
//!
//! The entry in the cache is named by a hash of the source's version, the configuration, what we
//! add to the source, and the compiler; it holds `vmlinux`, the final `config` and `System.map`.

mod config;
mod source;

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    cache,
    cli::KernelOptions,
    debian::{self, Package},
    digest, elf,
    process::Tool,
    terminal, workspace,
};
use source::Source;

/// What building a kernel of this configuration takes.
pub(crate) const PACKAGES: &[Package] = &[
    Package { name: "gcc", provides: "gcc" },
    Package { name: "libc6-dev", provides: "/usr/include/stdio.h" },
    Package { name: "make", provides: "make" },
    Package { name: "flex", provides: "flex" },
    Package { name: "bison", provides: "bison" },
    Package { name: "bc", provides: "bc" },
    Package { name: "libelf-dev", provides: "/usr/include/libelf.h" },
    Package { name: "xz-utils", provides: "xz" },
];

/// Raised when the steps below change what comes out of the same inputs.
const RECIPE: &str = "1";

/// Builds the kernel if it is not in the cache and prints where it is.
pub(crate) fn run(options: &KernelOptions) -> Result<()> {
    terminal::result(ensure(options)?.display());
    Ok(())
}

/// The `vmlinux` of these options, built if it is not in the cache.
pub(crate) fn ensure(options: &KernelOptions) -> Result<PathBuf> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("the guest kernel is built on x86_64 only, this is {}", std::env::consts::ARCH);
    }
    debian::ensure("the guest kernel", PACKAGES)?;
    let inputs = Inputs::gather(options)?;
    let entry = cache::get_or_make("kernel", &inputs.key()?, |entry| build(&inputs, entry))?;
    Ok(entry.join("vmlinux"))
}

/// Everything that shapes the kernel.
struct Inputs {
    source: Source,
    /// Options asked for, as text.
    fragment: String,
    /// C file added to the source; it says itself what for.
    addition: PathBuf,
}

impl Inputs {
    fn gather(options: &KernelOptions) -> Result<Self> {
        let guest = workspace::root().join("guest");
        let fragment = options.config.clone().unwrap_or_else(|| guest.join("kernel.config"));
        Ok(Self {
            source: Source::find(options)?,
            fragment: read(&fragment)?,
            addition: guest.join("machine.c"),
        })
    }

    fn key(&self) -> Result<String> {
        let compiler = Tool::new("gcc").arg("--version").output()?;
        let compiler = compiler.lines().next().unwrap_or_default();
        let addition = read(&self.addition)?;
        Ok(digest::key(&[RECIPE, self.source.identity(), &self.fragment, &addition, compiler]))
    }
}

fn build(inputs: &Inputs, entry: &Path) -> Result<()> {
    let started = Instant::now();
    terminal::step(format_args!("Building the guest kernel from {}", inputs.source.identity()));
    let cache = entry.parent().context("a cache entry lies in a folder")?;
    let tree = &entry.join("tree");
    fs::create_dir(tree).with_context(|| format!("create {}", tree.display()))?;

    terminal::note("unpacking the source");
    inputs.source.unpack(tree)?;
    add_to_source(tree, &inputs.addition)?;

    let fragment = tree.join("requested.config");
    fs::write(&fragment, &inputs.fragment).context("write the requested options")?;
    make(tree).env("KCONFIG_ALLCONFIG", &fragment).args(["-s", "allnoconfig"]).output()?;
    config::verify(&inputs.fragment, &read(&tree.join(".config"))?)?;

    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    terminal::note(format_args!("compiling with {jobs} jobs; minutes, once"));
    make(tree)
        .args([format!("-j{jobs}"), "vmlinux".to_owned()])
        .run_logged(&cache.join("last-build.log"), "steps")?;

    // Symbols for debuggers stay behind: they are half of the file, and a VMM reads all of it.
    let vmlinux = entry.join("vmlinux");
    Tool::new("strip").arg("-o").arg(&vmlinux).arg(tree.join("vmlinux")).run()?;
    elf::require_pvh(&vmlinux)?;
    for (from, to) in [(".config", "config"), ("System.map", "System.map")] {
        fs::copy(tree.join(from), entry.join(to)).with_context(|| format!("keep {to}"))?;
    }
    fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))?;
    terminal::note(format_args!("built in {} s", started.elapsed().as_secs()));
    Ok(())
}

/// A make that stamps nothing of this machine or moment into the kernel.
fn make(tree: &Path) -> Tool {
    Tool::new("make").arg("-C").arg(tree).args([
        "KBUILD_BUILD_USER=microsandbox",
        "KBUILD_BUILD_HOST=microsandbox",
        "KBUILD_BUILD_VERSION=1",
        "KBUILD_BUILD_TIMESTAMP=Thu Jan 1 00:00:00 UTC 1970",
    ])
}

fn add_to_source(tree: &Path, addition: &Path) -> Result<()> {
    let folder = tree.join("arch/x86/kernel");
    let name = addition.file_stem().and_then(|stem| stem.to_str()).context("name the addition")?;
    fs::copy(addition, folder.join(format!("{name}.c"))).context("add a file to the source")?;
    let makefile = folder.join("Makefile");
    let text = read(&makefile)? + &format!("obj-y += {name}.o\n");
    fs::write(&makefile, text).with_context(|| format!("write {}", makefile.display()))
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}
