//! The guest that this program carries, as `build.rs` has packed it.

use microsandbox_runtime::{CarriedFile, CarriedGuest};

include!(concat!(env!("OUT_DIR"), "/guest.rs"));
