//! System calls that need `unsafe`, each behind a safe function. The only such place in this crate.
//!
//! What `nix` offers safely is called from where it is needed; here is the rest.
#![expect(unsafe_code, reason = "raw system calls live here and nowhere else in this crate")]

pub(crate) mod clone;
pub(crate) mod device;
pub(crate) mod io;
pub(crate) mod process;
