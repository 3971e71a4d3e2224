//! The crate at its boundaries: images made by real tools, judged by other real tools.

mod alone;
mod fidelity;
mod files;
mod hostile;
mod hostile_registry;
mod made;
mod registries;
mod rootfs;
mod save;
mod scripted;
mod snapshot;
mod sources;
mod store;
mod tarball;
mod tools;
mod upper;
