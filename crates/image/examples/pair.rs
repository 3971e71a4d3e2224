//! Loads or pulls an image and makes the pair of disks that a virtual machine boots from.
//!
//! usage: pair STORE REFERENCE [ARCHIVE]
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::{Path, PathBuf};

use microsandbox_image::ext4::{self, UpperOptions};
use microsandbox_image::{ArchiveSource, ImageStore, PullOptions, Reference, Silent};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, name, archive @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: pair STORE REFERENCE [ARCHIVE]");
    };
    let store = ImageStore::open(root);
    let reference: Reference = name.parse()?;
    let image = match archive {
        [path] => {
            let source = ArchiveSource::Path(PathBuf::from(path));
            store.load(source, Some(&reference), &Silent)?.remove(0)
        }
        _ => store.pull(&reference, &PullOptions::default(), &Silent).await?,
    };
    println!("{} {}", image.digest(), image.disk().display());

    let upper = Path::new(root).join("upper.ext4");
    ext4::format(&upper, &UpperOptions::new(4 << 30, *b"an example uuid!"), &[])?;
    println!("{}", upper.display());
    Ok(())
}
