//! The catalogue: which sandboxes exist, what they were asked to be, and how their runs ended.
//!
//! One SQLite file that any number of processes open at once; no process owns it. [`Catalogue`] is
//! the only entry. SQL stays inside this crate: rows come out as plain data, errors as [`Error`].
//! Schema steps live in `microsandbox-migration`, the format in `docs/formats/catalogue.md`.
//!
//! The catalogue records and decides nothing. Whether a sandbox runs is told by the lock its
//! supervisor holds, never by a row.

#![forbid(unsafe_code)]

mod catalogue;
mod run;
mod sandbox;

mod connection;
mod entity;
mod error;
mod schema;
mod timestamp;

pub use catalogue::Catalogue;
pub use error::{DatabaseFault, Error, FaultKind, Result};
pub use run::Run;
pub use sandbox::{NewSandbox, SandboxFilter, SandboxId, SandboxRow};
