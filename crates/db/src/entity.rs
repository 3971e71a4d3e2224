//! The tables as `sea-orm` sees them. Their meaning is told in `docs/formats/catalogue.md`.

pub(crate) mod run;
pub(crate) mod sandbox;
pub(crate) mod sandbox_label;
pub(crate) mod snapshot;
