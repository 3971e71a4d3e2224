//! One file is enough: a program that calls [`init`] first in `main` runs its own sandboxes.
//!
//! The library starts the program again as the supervisor and the VMM of each sandbox. A program
//! that does not call [`init`] needs an installed `msb` for that.

pub use microsandbox_runtime::init;
