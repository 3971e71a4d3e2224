//! With the feature `embed-guest`: packs the guest that the program is to carry.
//!
//! The guest is the directory that `MSB_EMBED_GUEST` names, or the one that `cargo xtask setup` has
//! installed in `$MSB_HOME` (default `~/.microsandbox`). Without the feature this does nothing.

fn main() {
    #[cfg(feature = "embed-guest")]
    if let Err(missing) = carry::pack() {
        // Cargo shows these as its own and ends the build.
        println!("cargo::error=the feature `embed-guest` found no guest to carry: {missing}");
        println!(
            "cargo::error=help: run `cargo xtask setup`, which builds one into $MSB_HOME, or name \
             a directory with vmlinux and initramfs.cpio in MSB_EMBED_GUEST"
        );
    }
}

#[cfg(feature = "embed-guest")]
mod carry {
    use std::{
        ffi::OsString,
        fmt::Write as _,
        fs,
        path::{Path, PathBuf},
    };

    use sha2::{Digest as _, Sha256};

    const MSB_EMBED_GUEST: &str = "MSB_EMBED_GUEST";
    const MSB_HOME: &str = "MSB_HOME";
    const HOME: &str = "HOME";

    /// Names of the two files, as every guest build has them.
    const FILES: [&str; 2] = ["vmlinux", "initramfs.cpio"];

    /// A quarter of the kernel's size. The highest level takes off another tenth, in a minute,
    /// because build scripts are compiled without optimisation.
    const LEVEL: i32 = 9;

    /// Packs both files; an error names the one that is missing.
    pub(super) fn pack() -> Result<(), String> {
        let dir = find()?;
        let out = PathBuf::from(read("OUT_DIR").expect("cargo sets OUT_DIR"));
        let kernel = pack_file(&dir.join(FILES[0]), &out.join(FILES[0]))?;
        let initramfs = pack_file(&dir.join(FILES[1]), &out.join(FILES[1]))?;
        let file = |name: &str, digest: [u8; 32]| {
            format!(
                "CarriedFile {{ packed: include_bytes!(concat!(env!(\"OUT_DIR\"), \"/{name}\")), \
                 sha256: {digest:?} }}"
            )
        };
        let source = format!(
            "pub(crate) const GUEST: CarriedGuest = CarriedGuest {{ build: {:?}, kernel: {}, \
             initramfs: {} }};\n",
            build_id([kernel, initramfs]),
            file(FILES[0], kernel),
            file(FILES[1], initramfs),
        );
        fs::write(out.join("guest.rs"), source).expect("OUT_DIR can be written");
        Ok(())
    }

    /// Returns the digest of what was packed.
    fn pack_file(from: &Path, to: &Path) -> Result<[u8; 32], String> {
        let bytes = read_file(from)?;
        let packed = zstd::encode_all(&bytes[..], LEVEL).expect("memory can be compressed");
        fs::write(to, packed).expect("OUT_DIR can be written");
        Ok(Sha256::digest(&bytes).into())
    }

    fn find() -> Result<PathBuf, String> {
        for name in [MSB_EMBED_GUEST, MSB_HOME, HOME] {
            println!("cargo::rerun-if-env-changed={name}");
        }
        if let Some(dir) = read(MSB_EMBED_GUEST) {
            // Cargo runs build scripts in the package's own directory.
            let dir = PathBuf::from(dir);
            return match dir.is_absolute() {
                true => Ok(dir),
                false => Err(format!("{MSB_EMBED_GUEST} is {}, no absolute path", dir.display())),
            };
        }
        let home = read(MSB_HOME)
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(read(HOME)?).join(".microsandbox")));
        let guests = home.unwrap_or_default().join("guest");
        let current = read_file(&guests.join("current"))?;
        Ok(guests.join(String::from_utf8_lossy(&current).trim()))
    }

    fn read_file(path: &Path) -> Result<Vec<u8>, String> {
        println!("cargo::rerun-if-changed={}", path.display());
        fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// As `cargo xtask setup` names builds (`xtask/src/guest.rs`), so that the same guest installed
    /// and carried is one on disk: SHA-256 over the hex digests, each after its length, cut short.
    fn build_id(digests: [[u8; 32]; 2]) -> String {
        let mut hash = Sha256::new();
        for digest in digests {
            let text = hex(&digest);
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hex(&hash.finalize()[..8])
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().fold(String::new(), |mut text, byte| {
            write!(text, "{byte:02x}").expect("text can be written to a string");
            text
        })
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where the build reads variables")]
    fn read(name: &str) -> Option<OsString> {
        std::env::var_os(name).filter(|value| !value.is_empty())
    }
}
