//! What a prisoner tries, and which layers refuse it with which error.

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::{TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixStream},
    },
    path::Path,
};

use libc::{EACCES, ECONNREFUSED, ENETUNREACH, ENOENT, EPERM};
use microsandbox_runtime::Layer::{self, Landlock, Namespaces, Seccomp};

use super::{Facts, Place, sys};

/// One way out.
pub(super) struct Attempt {
    pub(super) name: &'static str,
    /// Gives an error number, 0 for success.
    pub(super) run: fn(&Facts) -> i32,
    /// The layers that refuse it alone, each with the errors it may give; none: it is its right, and must
    /// work with all of them.
    pub(super) refused_by: fn(Place) -> Claims,
    /// An ordinary process can do it: without any layer it must succeed.
    pub(super) control: bool,
}

const fn open_to_all(
    name: &'static str,
    run: fn(&Facts) -> i32,
    refused_by: fn(Place) -> Claims,
) -> Attempt {
    Attempt { name, run, refused_by, control: true }
}

/// What also takes privileges, or a kernel that has it.
const fn privileged(name: &'static str, run: fn(&Facts) -> i32) -> Attempt {
    Attempt { name, run, refused_by: by_calls, control: false }
}

type Claims = &'static [(Layer, &'static [i32])];

fn by_files(_: Place) -> Claims {
    &[(Landlock, &[EACCES])]
}

fn by_calls(_: Place) -> Claims {
    &[(Seccomp, &[EPERM])]
}

fn by_files_and_calls(_: Place) -> Claims {
    &[(Landlock, &[EACCES]), (Seccomp, &[EPERM])]
}

/// Landlock calls what is about processes and sockets not permitted, instead of denied.
fn by_scope_and_calls(_: Place) -> Claims {
    &[(Landlock, &[EPERM]), (Seccomp, &[EPERM])]
}

fn by_all(_: Place) -> Claims {
    &[(Landlock, &[EACCES, EPERM]), (Namespaces, &[ENETUNREACH, ECONNREFUSED]), (Seccomp, &[EPERM])]
}

fn by_network_and_calls(_: Place) -> Claims {
    &[(Namespaces, &[ENETUNREACH]), (Seccomp, &[EPERM])]
}

fn by_ipc_and_calls(_: Place) -> Claims {
    &[(Namespaces, &[ENOENT]), (Seccomp, &[EPERM])]
}

/// QEMU itself has to be executed after the filter is there; its own forbids it from then on.
fn by_files_or_calls(place: Place) -> Claims {
    match place {
        Place::Qemu => by_files(place),
        Place::Libkrun | Place::Sharing => by_files_and_calls(place),
    }
}

/// What one that serves a writable share does there is refused elsewhere by the files alone.
fn by_files_and_calls_if_it_shares_nothing(place: Place) -> Claims {
    match place {
        Place::Libkrun | Place::Qemu => by_files_and_calls(place),
        Place::Sharing => by_files(place),
    }
}

/// A backend serves the shares of a QEMU.
fn allowed_to_libkrun(place: Place) -> Claims {
    match place {
        Place::Libkrun | Place::Sharing => &[],
        Place::Qemu => by_files(place),
    }
}

fn allowed_where_it_shares(place: Place) -> Claims {
    match place {
        Place::Libkrun | Place::Qemu => by_files(place),
        Place::Sharing => &[],
    }
}

fn a_call_allowed_where_it_shares(place: Place) -> Claims {
    match place {
        Place::Libkrun | Place::Qemu => by_files_and_calls(place),
        Place::Sharing => &[],
    }
}

pub(super) const ATTEMPTS: &[Attempt] = &[
    // Files of others.
    open_to_all("read the user's home", |f| read(f.home.join("secret")), by_files),
    open_to_all("read the catalogue", |f| read(f.home.join("db/msb.db")), by_files),
    open_to_all("read another disk", |f| read(f.home.join("sandboxes/other/upper.ext4")), by_files),
    open_to_all("read another layer", |f| read(f.home.join("images/other.erofs")), by_files),
    open_to_all("list sandboxes", |f| done(fs::read_dir(f.home.join("sandboxes"))), by_files),
    open_to_all("read /etc/passwd", |_| read("/etc/passwd"), by_files),
    open_to_all("read through its root", |_| read("/proc/self/root/etc/passwd"), by_files),
    open_to_all("read its own /proc", |_| read("/proc/self/status"), by_files),
    open_to_all("read another's /proc", |_| read("/proc/1/stat"), by_files),
    // Writing where it may not.
    open_to_all("write its layer", |f| write(f.home.join("images/lower.raw")), by_files),
    open_to_all("write its kernel", |f| write(f.home.join("guest/vmlinux")), by_files),
    open_to_all(
        "write another disk",
        |f| write(f.home.join("sandboxes/other/upper.ext4")),
        by_files,
    ),
    open_to_all("make a file", |f| done(File::create(f.home.join("new"))), by_files),
    open_to_all("make a file in /tmp", |_| done(tempfile::tempfile()), by_files),
    open_to_all(
        "make a directory",
        |f| done(fs::create_dir(f.home.join("dir"))),
        by_files_and_calls_if_it_shares_nothing,
    ),
    open_to_all(
        "rename",
        |f| done(fs::rename(f.home.join("secret"), f.home.join("s"))),
        by_files_and_calls_if_it_shares_nothing,
    ),
    open_to_all(
        "remove",
        |f| done(fs::remove_file(f.home.join("images/other.erofs"))),
        by_files_and_calls_if_it_shares_nothing,
    ),
    open_to_all(
        "make a link",
        |f| done(std::os::unix::fs::symlink("/", f.home.join("l"))),
        by_files_and_calls_if_it_shares_nothing,
    ),
    open_to_all(
        "change a mode",
        |f| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
            done(fs::set_permissions(f.home.join("db/msb.db"), mode))
        },
        by_calls,
    ),
    // Shares: one that is read-only, and one that is writable where there is one.
    open_to_all("read a share", |f| read(f.home.join("inputs/file")), allowed_to_libkrun),
    open_to_all("list a share", |f| done(fs::read_dir(f.home.join("inputs"))), allowed_to_libkrun),
    open_to_all("read above a share", |f| read(f.home.join("inputs/../program")), by_files),
    open_to_all("write a read-only share", |f| write(f.home.join("inputs/file")), by_files),
    open_to_all(
        "make a file in a read-only share",
        |f| done(File::create(f.home.join("inputs/new"))),
        by_files,
    ),
    open_to_all(
        "remove from a read-only share",
        |f| remove(f.home.join("inputs/other")),
        by_files_and_calls_if_it_shares_nothing,
    ),
    open_to_all("write a share", |f| write(f.home.join("outputs/file")), allowed_where_it_shares),
    open_to_all(
        "make a file in a share",
        |f| done(File::create(f.home.join("outputs/new"))),
        allowed_where_it_shares,
    ),
    open_to_all(
        "make a directory in a share",
        |f| make_directory(f.home.join("outputs/dir")),
        a_call_allowed_where_it_shares,
    ),
    open_to_all(
        "rename in a share",
        |f| rename(f.home.join("outputs/other"), f.home.join("outputs/renamed")),
        a_call_allowed_where_it_shares,
    ),
    open_to_all(
        "move out of a share",
        |f| rename(f.home.join("outputs/third"), f.home.join("third")),
        by_files_and_calls_if_it_shares_nothing,
    ),
    open_to_all(
        "change a mode in a share",
        |f| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
            done(fs::set_permissions(f.home.join("outputs/file"), mode))
        },
        by_calls,
    ),
    // Devices.
    open_to_all("open /dev/zero", |_| read("/dev/zero"), by_files),
    open_to_all("open a terminal", |_| write("/dev/ptmx"), by_files),
    // Network.
    open_to_all("connect by TCP", |f| done(TcpStream::connect(("127.0.0.1", f.tcp_port))), by_all),
    open_to_all("listen on TCP", |_| done(TcpListener::bind("127.0.0.1:0")), by_files_and_calls),
    open_to_all(
        "send by UDP",
        |f| {
            let send = || UdpSocket::bind("0.0.0.0:0")?.send_to(b"out", ("127.0.0.1", f.udp_port));
            done(send())
        },
        by_network_and_calls,
    ),
    open_to_all(
        "connect to a sandbox",
        |f| done(UnixStream::connect(f.home.join("sandboxes/other/agent.sock"))),
        by_calls,
    ),
    open_to_all(
        "connect to an abstract socket",
        |f| {
            let name = SocketAddr::from_abstract_name(&f.abstract_name);
            done(name.and_then(|name| UnixStream::connect_addr(&name)))
        },
        by_all,
    ),
    open_to_all("make a netlink socket", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW), by_calls),
    privileged("make a raw socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW)),
    privileged("make a vsock socket", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
    // Programs and processes.
    open_to_all("execute a file", |f| execute(&f.home), by_files_or_calls),
    open_to_all(
        "execute memory",
        |_| sys::call(libc::SYS_memfd_create, [sys::path("m"), 0, 0, 0, 0]),
        by_calls,
    ),
    open_to_all("fork", |_| sys::fork(), by_calls),
    open_to_all(
        "signal its parent",
        |_| sys::call(libc::SYS_kill, [parent(), 0, 0, 0, 0]),
        by_scope_and_calls,
    ),
    open_to_all(
        "signal its parent's thread",
        |_| sys::call(libc::SYS_tkill, [parent(), 0, 0, 0, 0]),
        by_scope_and_calls,
    ),
    open_to_all(
        "hold its parent",
        |_| sys::call(libc::SYS_pidfd_open, [parent(), 0, 0, 0, 0]),
        by_calls,
    ),
    open_to_all(
        "slow its parent down",
        |_| sys::call(libc::SYS_setpriority, [0, parent(), 19, 0, 0]),
        by_calls,
    ),
    open_to_all(
        "raise its own limit",
        |_| {
            let limit = [256_u64, 256];
            let limit = limit.as_ptr().expose_provenance() as u64;
            sys::call(libc::SYS_prlimit64, [0, u64::from(libc::RLIMIT_NOFILE), limit, 0, 0])
        },
        by_calls,
    ),
    privileged("trace its parent", |_| sys::call(libc::SYS_ptrace, [0x4206, parent(), 0, 0, 0])),
    privileged("read its parent's memory", |_| {
        sys::call(libc::SYS_process_vm_readv, [parent(), sys::buffer(), 1, sys::buffer(), 1])
    }),
    privileged("take its parent's descriptor", |_| {
        sys::call(libc::SYS_pidfd_getfd, [0, 0, 0, 0, 0])
    }),
    open_to_all(
        "find shared memory",
        |f| sys::call(libc::SYS_shmget, [f.shared_memory.cast_unsigned().into(), 4096, 0, 0, 0]),
        by_ipc_and_calls,
    ),
    // The machine.
    privileged("mount", |f| {
        let (kind, place) = (sys::path("tmpfs"), sys::path(&f.home));
        sys::call(libc::SYS_mount, [kind, place, kind, 0, 0])
    }),
    privileged("open a file system", |_| {
        sys::call(libc::SYS_fsopen, [sys::path("tmpfs"), 0, 0, 0, 0])
    }),
    privileged("make namespaces", |_| sys::call(libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0])),
    privileged("enter namespaces", |_| sys::call(libc::SYS_setns, [0, 0, 0, 0, 0])),
    privileged("change its root", |_| sys::call(libc::SYS_chroot, [sys::path("/"), 0, 0, 0, 0])),
    privileged("load a module", |_| {
        sys::call(libc::SYS_init_module, [sys::buffer(), 8, sys::path(""), 0, 0])
    }),
    privileged("load a kernel", |_| sys::call(libc::SYS_kexec_load, [0, 0, 0, 0, 0])),
    privileged("restart the host", |_| sys::call(libc::SYS_reboot, [0, 0, 0, 0, 0])),
    privileged("become root", |_| sys::call(libc::SYS_setuid, [0, 0, 0, 0, 0])),
    privileged("load a BPF program", |_| sys::call(libc::SYS_bpf, [5, sys::buffer(), 64, 0, 0])),
    privileged("watch events", |_| {
        sys::call(libc::SYS_perf_event_open, [sys::buffer(), 0, u64::MAX, u64::MAX, 0])
    }),
    privileged("handle page faults", |_| sys::call(libc::SYS_userfaultfd, [1, 0, 0, 0, 0])),
    privileged("watch file systems", |_| sys::call(libc::SYS_fanotify_init, [0, 0, 0, 0, 0])),
    privileged("open by handle", |_| {
        sys::call(libc::SYS_open_by_handle_at, [0, sys::buffer(), 0, 0, 0])
    }),
    privileged("make a ring", |_| sys::call(libc::SYS_io_uring_setup, [1, sys::buffer(), 0, 0, 0])),
    privileged("keep a key", |_| {
        let (kind, name) = (sys::path("user"), sys::path("name"));
        // -3 is the session's keyring.
        sys::call(libc::SYS_add_key, [kind, name, name, 4, (-3_i64).cast_unsigned()])
    }),
    privileged("ask for keys", |_| {
        sys::call(libc::SYS_keyctl, [0, (-3_i64).cast_unsigned(), 0, 0, 0])
    }),
    open_to_all(
        "change its personality",
        |_| sys::call(libc::SYS_personality, [0, 0, 0, 0, 0]),
        by_calls,
    ),
];

fn done<T>(result: io::Result<T>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap_or(-1), |_| 0)
}

fn read(path: impl AsRef<Path>) -> i32 {
    done(File::open(path))
}

fn write(path: impl AsRef<Path>) -> i32 {
    done(OpenOptions::new().write(true).open(path))
}

// As libkrun makes these calls; the standard library makes older ones.

/// Paths begin at the root, wherever this process is.
const HERE: u64 = i64::cast_unsigned(libc::AT_FDCWD as i64);

fn make_directory(path: impl AsRef<Path>) -> i32 {
    sys::call(libc::SYS_mkdirat, [HERE, sys::path(path), 0o700, 0, 0])
}

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> i32 {
    sys::call(libc::SYS_renameat2, [HERE, sys::path(from), HERE, sys::path(to), 0])
}

fn remove(path: impl AsRef<Path>) -> i32 {
    sys::call(libc::SYS_unlinkat, [HERE, sys::path(path), 0, 0, 0])
}

fn socket(family: i32, kind: i32) -> i32 {
    sys::call(libc::SYS_socket, [family.unsigned_abs().into(), kind.unsigned_abs().into(), 0, 0, 0])
}

fn parent() -> u64 {
    u64::from(std::os::unix::process::parent_id())
}

fn execute(home: &Path) -> i32 {
    sys::execute(sys::path(home.join("program")))
}
