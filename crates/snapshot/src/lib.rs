//! Snapshots of machines on disk: content-addressed, checked, portable.
//!
//! A snapshot is a directory: a manifest, the writable disk and, where a running machine was taken,
//! what its memory and devices held. This crate keeps such directories whole. It knows neither
//! sandboxes nor VMs: the files are bytes with holes to it, the definition is JSON of its caller.
//!
//! ```text
//!  Draft ──publish──▶ <store>/<name>/{snapshot.json, upper.ext4, …} ──export──▶ one .tar.zst
//!    ▲ clones of files        named by its content: id = sha256(snapshot.json)       │
//!    └────────────────────────────────────import─────────────────────────────────────┘
//! ```
//!
//! The format is `docs/formats/snapshot.md`.
#![forbid(unsafe_code)]

mod archive;
mod content;
mod draft;
mod error;
mod manifest;
mod seen;
mod store;

pub use archive::export;
pub use content::{Digest, NoDigest};
pub use draft::{Draft, IfTaken};
pub use error::{Error, Result};
pub use manifest::{FileRecord, ImagePin, Manifest, NewManifest};
pub use microsandbox_archive::clone_file;
pub use store::{Snapshot, SnapshotStore};
