//! `msb` as its users meet it: real guests, real archives, a real registry, a fresh home per test.
//!
//! A check is a snapshot of exit code, standard output and standard error. `cargo xtask test` says
//! where a guest and images are; without it these tests fail and say so.
#![expect(clippy::unwrap_used, reason = "these are tests, their helpers included")]

mod causes;
mod contention;
mod copies;
mod disk;
mod doctor;
mod documents;
mod ends;
mod execs;
mod home;
mod images;
mod jobs;
mod lifecycle;
mod logs;
mod machines;
mod pulls;
mod reading;
mod refusals;
mod registry;
mod runs;
mod store;
mod templates;
mod terminals;
