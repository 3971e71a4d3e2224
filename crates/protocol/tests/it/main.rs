//! The wire as bytes: what was released stays readable for ever.

mod garbage;
mod golden;
