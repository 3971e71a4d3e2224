//! OCI images as bootable disks, usable alone.
//!
//! A registry, an archive or a layout directory goes in; out comes a read-only disk that a virtual machine
//! mounts as one EROFS file system, made in one pass without root rights, loop devices or external tools, and
//! next to it an empty ext4 disk to write to.
//!
//! ```no_run
//! # async fn example() -> Result<(), microsandbox_image::Error> {
//! use microsandbox_image::{ImageStore, PullOptions, Reference, Silent};
//!
//! let store = ImageStore::open("/var/lib/images");
//! let reference: Reference = "debian:12".parse()?;
//! let image = store.pull(&reference, &PullOptions::default(), &Silent).await?;
//! println!("{} boots from {}", image.digest(), image.disk().display());
//! # Ok(())
//! # }
//! ```
//!
//! The crate knows neither sandboxes nor virtual machines. Formats are described in `docs/formats/`.
#![forbid(unsafe_code)]

mod config;
mod digest;
mod erofs;
mod error;
pub mod ext4;
mod files;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod image;
mod layer;
mod limits;
mod load;
mod manifest;
mod merge;
mod platform;
mod progress;
mod pull;
mod reference;
mod registry;
mod save;
mod store;
mod tar;
mod thread;
mod tree;
mod vmdk;

pub use self::config::ImageConfig;
pub use self::digest::{DiffId, Digest};
pub use self::erofs::BlockSize;
pub use self::error::{Cause, EntryFault, Error, LayerError, Subject};
pub use self::files::{FileKind, FileReader, FileStat, ImageFiles, Links};
pub use self::image::{DiskExtent, Image};
pub use self::limits::Limits;
pub use self::load::ArchiveSource;
pub use self::platform::Platform;
pub use self::progress::{Progress, PullProgress, Silent};
pub use self::pull::{Network, PullOptions, PullPolicy};
pub use self::reference::Reference;
pub use self::registry::{Mirror, RegistryAuth, RegistrySettings};
pub use self::save::{ArchiveFormat, LayerCompression, SaveOptions, SaveTarget};
pub use self::store::{
    Collected, ImageHold, ImageStore, ImageUsage, PartUsage, StorePart, StoreUsage,
};
