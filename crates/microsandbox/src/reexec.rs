//! One file is enough: a program that calls [`init`] first in `main` runs its own sandboxes.
//!
//! The library starts the program again as the supervisor and the VMM of each sandbox. A program
//! that does not call [`init`] needs an installed `msb` for that. With the feature `embed-guest` it
//! carries the guest's kernel and agent as well.

pub use microsandbox_runtime::init;
