//! Trees of files as tar streams, and files that appear whole or not at all.
//!
//! Both ends of a copy use it: the agent within the guest, the facade on the host. It takes readers,
//! writers and directories; it knows neither sandboxes nor the wire.
//!
//! ```text
//!  tree ──pack──▶ tar stream ──unpack──▶ tree
//!                   │  members: header by `tar`, order and limits by `members`
//!                   └  modes, owners, times to the nanosecond, links of both kinds, holes, attributes
//! ```
//!
//! A stream may come from an enemy: what it says is never a path outside of the directory it is
//! unpacked in, and no record in it makes the reader keep more than a fixed number of bytes.
#![forbid(unsafe_code)]

mod clone;
mod error;
mod members;
mod new_file;
mod pack;
mod unpack;
mod write;

pub use clone::clone_file;
pub use error::{Error, Refusal, Result};
pub use new_file::NewFile;
pub use pack::{Pack, pack, pack_all};
pub use unpack::{Owners, Unpack, unpack};
