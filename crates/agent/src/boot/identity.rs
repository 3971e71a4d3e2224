//! What makes this sandbox another than its siblings: randomness, clock, name, machine id.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use microsandbox_protocol::{BootStage, Timestamp};
use nix::errno::Errno;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};
use nix::unistd::sethostname;

use super::{Step, errno, failed};
use crate::sys::device;

/// Least entropy that makes the kernel's generator unpredictable: its key has 256 bits.
const ENTROPY_MIN: usize = 32;

const RANDOM: &str = "/dev/urandom";

/// Credits the host's random bytes and makes the generator use them at once.
pub(super) fn seed(entropy: &[u8]) -> Step<()> {
    let stage = BootStage::Entropy;
    if entropy.len() < ENTROPY_MIN {
        return Err(failed(stage, "entropy of the host")(Errno::EMSGSIZE));
    }
    let random = File::open(RANDOM).map_err(|error| failed(stage, RANDOM)(errno(&error)))?;
    device::add_entropy(random, entropy).map_err(failed(stage, RANDOM))
}

/// Sets the wall clock.
pub(super) fn set_clock(now: Timestamp) -> Step<()> {
    let time = TimeSpec::new(now.seconds, now.nanoseconds.into());
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(failed(BootStage::Clock, "CLOCK_REALTIME"))
}

/// Takes on the name, and writes the files that tell it where the image has none.
pub(super) fn assume(hostname: &str) -> Step<()> {
    let stage = BootStage::Identity;
    sethostname(hostname).map_err(failed(stage, hostname))?;
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         127.0.1.1\t{hostname}\n"
    );
    let files = [
        ("/etc/hostname", format!("{hostname}\n")),
        ("/etc/hosts", hosts),
        ("/etc/machine-id", machine_id()?),
    ];
    // A directory that is there costs nothing; one that cannot be made shows in the first file.
    let _ = fs::create_dir("/etc");
    for (path, content) in files {
        if is_unset(Path::new(path)) {
            fs::write(path, content).map_err(|error| failed(stage, path)(errno(&error)))?;
        }
    }
    Ok(())
}

/// Whether a file of the image is missing or empty. A link, a device, a directory is its own choice.
fn is_unset(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(data) => data.is_file() && data.len() == 0,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// A new id as machine-id(5) has it: 32 lower-case hexadecimal digits, a version 4 UUID.
fn machine_id() -> Step<String> {
    let mut bytes = [0; 16];
    let drawn = File::open(RANDOM).and_then(|mut random| random.read_exact(&mut bytes));
    drawn.map_err(|error| failed(BootStage::Identity, RANDOM)(errno(&error)))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let mut id = String::new();
    for byte in bytes {
        write!(id, "{byte:02x}").expect("a string takes all that is written");
    }
    id.push('\n');
    Ok(id)
}
