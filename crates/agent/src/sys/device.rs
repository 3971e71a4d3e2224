//! `ioctl`: the random generator, the loopback interface, terminals.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use libc::{c_char, c_int, c_short, c_ulong};
use microsandbox_protocol::TerminalSize;
use nix::errno::Errno;

/// `RNDADDENTROPY` of `linux/random.h`: `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: c_ulong = 0x4008_5203;
/// `RNDRESEEDCRNG` of `linux/random.h`: `_IO('R', 0x07)`.
const RNDRESEEDCRNG: c_ulong = 0x5207;

/// Bytes taken by one [`add_entropy`]; more say nothing new to a generator with a 256-bit key.
const ENTROPY_MAX: usize = 256;

/// `struct rand_pool_info` of `linux/random.h` with room for the bytes behind it.
#[repr(C)]
struct RandPoolInfo {
    entropy_bits: c_int,
    size_bytes: c_int,
    bytes: [u8; ENTROPY_MAX],
}

/// Mixes `entropy` into the kernel's generator, counts every bit of it, and makes the generator take
/// a new key from it at once.
///
/// # Errors
/// What the kernel said.
pub(crate) fn add_entropy(random: impl AsFd, entropy: &[u8]) -> Result<(), Errno> {
    let random = random.as_fd().as_raw_fd();
    for chunk in entropy.chunks(ENTROPY_MAX) {
        let size = c_int::try_from(chunk.len()).expect("a chunk is at most ENTROPY_MAX long");
        let mut info =
            RandPoolInfo { entropy_bits: size * 8, size_bytes: size, bytes: [0; ENTROPY_MAX] };
        info.bytes[..chunk.len()].copy_from_slice(chunk);
        // SAFETY: reads the two counts and `size_bytes` bytes behind them, which `info` has.
        Errno::result(unsafe { libc::ioctl(random, ioctl(RNDADDENTROPY), &raw const info) })?;
    }
    // SAFETY: takes no argument.
    Errno::result(unsafe { libc::ioctl(random, ioctl(RNDRESEEDCRNG)) }).map(drop)
}

/// Sets an interface up; `socket` is any IPv4 socket.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_interface_up(socket: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    /// `struct ifreq` of `linux/if.h`, its union taken as flags.
    #[repr(C)]
    struct InterfaceFlags {
        name: [c_char; libc::IFNAMSIZ],
        flags: c_short,
        rest: [u8; 22],
    }
    const { assert!(size_of::<InterfaceFlags>() == size_of::<libc::ifreq>()) };

    if name.len() >= libc::IFNAMSIZ {
        return Err(Errno::ENAMETOOLONG);
    }
    let mut request = InterfaceFlags { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    for (to, from) in request.name.iter_mut().zip(name) {
        *to = c_char::from_ne_bytes([*from]);
    }
    let socket = socket.as_fd().as_raw_fd();
    // SAFETY: reads the name from and writes the flags into `request`, as large as an `ifreq`.
    Errno::result(unsafe { libc::ioctl(socket, ioctl(libc::SIOCGIFFLAGS), &raw mut request) })?;
    request.flags |= c_short::try_from(libc::IFF_UP).expect("IFF_UP is 1");
    // SAFETY: reads name and flags from `request`, as large as an `ifreq`.
    Errno::result(unsafe { libc::ioctl(socket, ioctl(libc::SIOCSIFFLAGS), &raw const request) })
        .map(drop)
}

/// Opens the other side of the pseudo terminal whose master this is.
///
/// # Errors
/// What the kernel said.
pub(crate) fn open_terminal(master: impl AsFd) -> Result<OwnedFd, Errno> {
    let master = master.as_fd().as_raw_fd();
    let unlock: c_int = 0;
    // SAFETY: reads one int.
    Errno::result(unsafe { libc::ioctl(master, ioctl(libc::TIOCSPTLCK), &raw const unlock) })?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes an integer and gives a new descriptor.
    let fd = Errno::result(unsafe { libc::ioctl(master, ioctl(libc::TIOCGPTPEER), flags) })?;
    // SAFETY: the kernel has just made it for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal the controlling one of this session; steals it from nobody.
///
/// # Errors
/// What the kernel said.
pub(crate) fn take_terminal(terminal: impl AsFd) -> Result<(), Errno> {
    let (terminal, steal): (_, c_int) = (terminal.as_fd().as_raw_fd(), 0);
    // SAFETY: takes an integer.
    Errno::result(unsafe { libc::ioctl(terminal, ioctl(libc::TIOCSCTTY), steal) }).map(drop)
}

/// Tells a terminal its size; its foreground processes get `SIGWINCH` when it is another.
///
/// # Errors
/// What the kernel said.
pub(crate) fn set_terminal_size(terminal: impl AsFd, size: TerminalSize) -> Result<(), Errno> {
    let size =
        libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = terminal.as_fd().as_raw_fd();
    // SAFETY: reads one `winsize`.
    Errno::result(unsafe { libc::ioctl(terminal, ioctl(libc::TIOCSWINSZ), &raw const size) })
        .map(drop)
}

/// The request number as this C library's `ioctl` takes it: musl wants an `int`.
fn ioctl(request: impl TryInto<u32>) -> libc::Ioctl {
    let Ok(number) = request.try_into() else { unreachable!("request numbers have 32 bits") };
    number as libc::Ioctl
}
