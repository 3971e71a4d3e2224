//! Pulls an image, prints its tree, and writes the pair of disks that a virtual machine boots from.
//!
//! usage: pair STORE REFERENCE
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::Path;

use microsandbox_image::ext4::{self, UpperOptions};
use microsandbox_image::{ImageStore, PullOptions, Silent};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, name] = &arguments[..] else { return Err("usage: pair STORE REFERENCE".into()) };
    let store = ImageStore::open(root);
    let image = store.pull_blocking(&name.parse()?, &PullOptions::default(), &Silent)?;
    for (path, file) in image.files()?.walk("/")? {
        println!("{:04o} {:>10} {}", file.permissions, file.size_bytes, path.display());
    }
    let upper = Path::new(root).join("upper.ext4");
    ext4::format(&upper, &UpperOptions::new(4 << 30, *b"an example uuid!"), &[])?;
    println!("boot from {}, write to {}", image.disk().display(), upper.display());
    Ok(())
}
