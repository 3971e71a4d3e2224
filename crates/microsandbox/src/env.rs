//! Environment variables: every one that this project reads, in one place.
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `MSB_HOME` | directory of all state | `~/.microsandbox` |
//! | `MSB_PATH` | the `msb` that supervises sandboxes of programs without [`crate::reexec::init`] | looked for |
//! | `MSB_VMM` | `auto`, `libkrun` or `qemu` | `auto` |
//! | `MSB_BOOT` | `template`, or `cold`: machines do not go on from templates | `template` |
//! | `MSB_MAX_TEMPLATES`, `MSB_MAX_TEMPLATES_MIB` | most templates that are kept, and most space that they take; `0`: none | 16, 1024 |
//! | `MSB_KERNEL` | guest kernel to boot, an uncompressed ELF | the installed one |
//! | `MSB_KERNEL_ARGS` | more words for its command line; `ignore_loglevel` shows its whole boot in `msb logs --source kernel` | none |
//! | `MSB_KVM_PROBE` | `skip`: KVM is taken to work wherever it opens, and the kernel tells of its whole boot | `auto` |
//! | `MSB_CONFINEMENT` | `auto`: every layer the host has; `required`: refuse to start without one; `off`; or names of layers (`landlock`, `namespaces`, `seccomp`) with commas between | `auto` |
//! | `MSB_LOG` | log directives, as `RUST_LOG` has them | `warn` |
//! | `MSB_OFFLINE` | `1`: pulls never touch the network | `0` |
//! | `MSB_MIRRORS` | hosts to ask before registries: `REGISTRY=URL`, several with commas between | none |
//! | `MSB_INSECURE_REGISTRIES` | registries without encryption or a valid certificate, with commas between | none |
//! | `MSB_CA_CERTS` | files with certificates of authorities (PEM), with colons between | none |
//! | `HOME`, `PATH` | as everywhere | |
//!
//! `MSB_EMBED_GUEST` is read while a program with the feature `embed-guest` is built: the directory of
//! the guest that it is to carry.

use std::ffi::OsString;

/// Directory of all state.
pub const MSB_HOME: &str = "MSB_HOME";
/// The `msb` that supervises sandboxes of programs that cannot do so themselves.
pub const MSB_PATH: &str = "MSB_PATH";
/// Which VMM to use.
pub const MSB_VMM: &str = "MSB_VMM";
/// Whether machines go on from templates.
pub const MSB_BOOT: &str = "MSB_BOOT";
/// Most templates that are kept.
pub const MSB_MAX_TEMPLATES: &str = "MSB_MAX_TEMPLATES";
/// Most space that templates take, MiB.
pub const MSB_MAX_TEMPLATES_MIB: &str = "MSB_MAX_TEMPLATES_MIB";
/// Guest kernel to boot.
pub const MSB_KERNEL: &str = "MSB_KERNEL";
/// More words for the guest kernel's command line.
pub const MSB_KERNEL_ARGS: &str = "MSB_KERNEL_ARGS";
/// Whether KVM is tried out before it is used.
pub const MSB_KVM_PROBE: &str = "MSB_KVM_PROBE";
/// How the processes of sandboxes are confined.
pub const MSB_CONFINEMENT: &str = "MSB_CONFINEMENT";
/// Log directives.
pub const MSB_LOG: &str = "MSB_LOG";
/// Whether pulls never touch the network.
pub const MSB_OFFLINE: &str = "MSB_OFFLINE";
/// Hosts to ask before registries.
pub const MSB_MIRRORS: &str = "MSB_MIRRORS";
/// Registries that need neither encryption nor a valid certificate.
pub const MSB_INSECURE_REGISTRIES: &str = "MSB_INSECURE_REGISTRIES";
/// Files with certificates of authorities.
pub const MSB_CA_CERTS: &str = "MSB_CA_CERTS";
/// The user's directory.
pub const HOME: &str = "HOME";
/// Where programs are looked for.
pub const PATH: &str = "PATH";

/// The value of a variable; one that is empty counts as not set.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
pub fn read(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The value of a variable as text; bytes that are none are replaced.
pub fn read_text(name: &str) -> Option<String> {
    read(name).map(|value| value.to_string_lossy().into_owned())
}
