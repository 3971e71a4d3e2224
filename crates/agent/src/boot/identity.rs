//! What makes this sandbox another than its siblings: randomness, clock, name, machine id.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use microsandbox_protocol::{BootStage, Timestamp};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
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
pub(crate) fn set_clock(now: Timestamp) -> Step<()> {
    let time = TimeSpec::new(now.seconds, now.nanoseconds.into());
    clock_settime(ClockId::CLOCK_REALTIME, time).map_err(failed(BootStage::Clock, "CLOCK_REALTIME"))
}

/// What this machine has been told to be, and the files that tell it to its programs.
#[derive(Debug)]
pub(crate) struct Identity {
    hostname: String,
    /// Files that the agent wrote, because the image leaves them open, with their content.
    files: Vec<(&'static str, String)>,
}

impl Identity {
    /// Takes on the name, and sees to the files that tell it, those that are `open`.
    ///
    /// One that is as in the image, missing or empty is written. In a clone what an agent wrote for the
    /// other machine is written anew.
    pub(super) fn assume(hostname: &str, open: &[OpenFile], is_clone: bool) -> Step<Self> {
        sethostname(hostname).map_err(failed(BootStage::Identity, hostname))?;
        let earlier = earlier_files();
        let mut files = Vec::new();
        for (path, content) in files_of(hostname)? {
            let Some(open) = open.iter().find(|open| open.path == path) else { continue };
            let written = earlier.iter().find(|(known, _)| *known == path);
            match written.filter(|(_, content)| *content != open.of_image) {
                Some((_, content)) if !is_clone => files.push((path, content.clone())),
                None if !open.is_as_in_image() => {}
                _ => {
                    write(path, &content)?;
                    files.push((path, content));
                }
            }
        }
        Ok(Self { hostname: hostname.to_owned(), files })
    }

    pub(super) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Leaves files alone from here on that are no longer as they were written: they belong to whoever
    /// changed them.
    pub(super) fn disown_changed_files(&mut self) {
        self.files.retain(|(path, text)| fs::read(path).is_ok_and(|now| now == text.as_bytes()));
    }

    /// Takes on another name and another machine id.
    pub(super) fn rename(&mut self, hostname: &str) -> Step<()> {
        sethostname(hostname).map_err(failed(BootStage::Identity, hostname))?;
        let mut files = files_of(hostname)?;
        files.retain(|(path, _)| self.files.iter().any(|(ours, _)| ours == path));
        for (path, content) in &files {
            overwrite(path, content)
                .map_err(|error| failed(BootStage::Identity, *path)(errno(&error)))?;
        }
        (self.hostname, self.files) = (hostname.to_owned(), files);
        Ok(())
    }
}

/// Puts `content` into a file in the place of what it holds: no block is freed and none is looked for,
/// which is most of what writing a small file costs.
fn overwrite(path: &str, content: &str) -> io::Result<()> {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(content.as_bytes(), 0)?;
    let len = content.len() as u64;
    if file.metadata()?.len() > len {
        file.set_len(len)?;
    }
    Ok(())
}

/// A file of an identity that is not the image's to say.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: &'static str,
    /// What the image has there.
    of_image: String,
}

impl OpenFile {
    /// Whether nobody has put anything else there.
    fn is_as_in_image(&self) -> bool {
        let path = Path::new(self.path);
        is_unset(path) || fs::read_to_string(path).is_ok_and(|now| now == self.of_image)
    }
}

/// Those of an image, seen at the place where it is mounted: what it says nothing in, and its host name,
/// which is of the machine that it was made on, if of any.
pub(super) fn files_left_open(image: &Path) -> Vec<OpenFile> {
    let open = |path: &'static str| {
        let at = image.join(path.trim_start_matches('/'));
        let is_file = fs::symlink_metadata(&at).is_ok_and(|data| data.is_file());
        let is_open = is_unset(&at) || path == HOSTNAME && is_file;
        is_open.then(|| OpenFile { path, of_image: fs::read_to_string(&at).unwrap_or_default() })
    };
    [HOSTNAME, HOSTS, MACHINE_ID].into_iter().filter_map(open).collect()
}

const HOSTNAME: &str = "/etc/hostname";
const HOSTS: &str = "/etc/hosts";
const MACHINE_ID: &str = "/etc/machine-id";

/// The files of an identity. The machine id is drawn anew each time.
fn files_of(hostname: &str) -> Step<Vec<(&'static str, String)>> {
    let mut files = named_files_of(hostname);
    files.push((MACHINE_ID, machine_id()?));
    Ok(files)
}

/// Those that tell the name.
fn named_files_of(hostname: &str) -> Vec<(&'static str, String)> {
    let hosts = format!(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         {OWN_ADDRESS}{hostname}\n"
    );
    vec![(HOSTNAME, format!("{hostname}\n")), (HOSTS, hosts)]
}

/// What is in front of the machine's own name in its hosts file.
const OWN_ADDRESS: &str = "127.0.1.1\t";

/// The files of the identity that this root file system had before, as far as they still are what an
/// agent writes. Nobody but an agent writes a machine id where the image has none.
fn earlier_files() -> Vec<(&'static str, String)> {
    let now = |path| fs::read_to_string(path).unwrap_or_default();
    let (told, hosts) = (now(HOSTNAME), now(HOSTS));
    let name = hosts.rsplit_once(OWN_ADDRESS).map_or(&*told, |(_, name)| name);
    let mut files = named_files_of(name.trim_end());
    files.retain(|(path, content)| now(path) == *content);
    files.push((MACHINE_ID, now(MACHINE_ID)));
    files.retain(|(_, content)| content.len() > 1);
    files
}

fn write(path: &'static str, content: &str) -> Step<()> {
    // A directory that is there costs nothing; one that cannot be made shows in the file.
    let _ = fs::create_dir("/etc");
    fs::write(path, content).map_err(|error| failed(BootStage::Identity, path)(errno(&error)))
}

/// Covers the boot id, which the kernel draws once and may have told already.
pub(super) fn change_boot_id() -> Step<()> {
    let stage = BootStage::Identity;
    let id = File::open(NEW_UUID).and_then(|mut drawn| {
        let mut id = String::new();
        drawn.read_to_string(&mut id).map(|_| id)
    });
    let id = id.map_err(|error| failed(stage, NEW_UUID)(errno(&error)))?;
    // That of an earlier rebirth; there may be none.
    let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(BOOT_ID_COVER);
    fs::write(BOOT_ID_COVER, id).map_err(|error| failed(stage, BOOT_ID_COVER)(errno(&error)))?;
    let (source, none) = (Some(BOOT_ID_COVER), None::<&str>);
    mount(source, BOOT_ID, none, MsFlags::MS_BIND, none).map_err(failed(stage, BOOT_ID))?;
    // Its name is of no use to anybody; the mount keeps the file.
    let _ = fs::remove_file(BOOT_ID_COVER);
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, BOOT_ID, none, read_only, none).map_err(failed(stage, BOOT_ID))
}

/// Drawn once for each boot, at the first read (`proc_do_uuid` in `drivers/char/random.c`).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Drawn for each reader, by the same function.
const NEW_UUID: &str = "/proc/sys/kernel/random/uuid";

/// What the boot id is covered with, on the way there.
const BOOT_ID_COVER: &str = "/run/.msb-boot-id";

/// Whether a file of the image is missing or empty. A link, a device, a directory is its own choice.
fn is_unset(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Ok(data) => data.is_file() && data.len() == 0,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
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
