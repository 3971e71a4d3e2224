//! libkrun's C interface, one checked call each.
//!
//! `libkrun-sys` 0.11 declares most of it; what it lacks is declared here with the signatures of
//! `include/libkrun.h` of libkrun 1.19.7. The functions come from the `libkrun` crate, linked
//! statically; the `use` below is what pulls it in.

use std::{
    ffi::{CString, c_char, c_int},
    os::fd::{AsRawFd, BorrowedFd, IntoRawFd},
    ptr,
};

use krun as _;
use libkrun_sys as ffi;
use microsandbox_protocol::PORT_NAME;

// Signatures: libkrun 1.19.7, `include/libkrun.h`.
unsafe extern "C" {
    fn krun_add_console_port_inout(
        ctx_id: u32,
        console_id: u32,
        name: *const c_char,
        input_fd: c_int,
        output_fd: c_int,
    ) -> i32;
    fn krun_add_console_port_tty(
        ctx_id: u32,
        console_id: u32,
        name: *const c_char,
        tty_fd: c_int,
    ) -> i32;
    fn krun_add_disk3(
        ctx_id: u32,
        block_id: *const c_char,
        disk_path: *const c_char,
        disk_format: u32,
        read_only: bool,
        direct_io: bool,
        sync_mode: u32,
    ) -> i32;
    fn krun_add_serial_console_default(ctx_id: u32, input_fd: c_int, output_fd: c_int) -> i32;
    fn krun_add_virtio_console_multiport(ctx_id: u32) -> i32;
    fn krun_disable_implicit_console(ctx_id: u32) -> i32;
    fn krun_disable_implicit_init(ctx_id: u32) -> i32;
}

/// `KRUN_DISK_FORMAT_VMDK` of `libkrun.h`; read-only there.
const DISK_FORMAT_VMDK: u32 = 2;

/// `KRUN_SYNC_FULL` of `libkrun.h`: a guest's flush reaches the host's disk.
const SYNC_FULL: u32 = 2;

/// `KRUN_LOG_LEVEL_WARN` of `libkrun.h`.
const LOG_LEVEL_WARN: u32 = 2;

/// `KRUN_LOG_STYLE_NEVER` of `libkrun.h`: no colours.
const LOG_STYLE_NEVER: u32 = 2;

/// `KRUN_LOG_OPTION_NO_ENV` of `libkrun.h`: levels are not read from the environment.
const LOG_OPTION_NO_ENV: u32 = 1;

/// None of the `NET_FEATURE_*` of `libkrun.h`.
const NO_FEATURES: u32 = 0;

/// None of the `NET_FLAG_*` of `libkrun.h`.
const NO_FLAGS: u32 = 0;

/// libkrun's own warnings and errors go to the standard error of this process.
pub(crate) fn log_to_stderr() -> Result<(), String> {
    // SAFETY: plain integers; 2 is the standard error, which libkrun writes to and does not own.
    let code = unsafe { ffi::krun_init_log(2, LOG_LEVEL_WARN, LOG_STYLE_NEVER, LOG_OPTION_NO_ENV) };
    check("krun_init_log", code).map(drop)
}

/// A VM under construction.
#[derive(Debug)]
pub(crate) struct Context {
    id: u32,
}

/// A disk as libkrun wants it told.
#[derive(Debug)]
pub(crate) struct KrunDisk<'a> {
    pub(crate) id: &'a str,
    pub(crate) path: &'a str,
    pub(crate) vmdk: bool,
    pub(crate) read_only: bool,
}

impl Context {
    pub(crate) fn create() -> Result<Self, String> {
        // SAFETY: the function takes nothing and touches only libkrun's own state.
        let id = unsafe { ffi::krun_create_ctx() };
        let id = check("krun_create_ctx", id)?;
        Ok(Self { id })
    }

    pub(crate) fn set_machine(&self, vcpus: u8, memory_mib: u32) -> Result<(), String> {
        // SAFETY: plain integers; libkrun checks the context id.
        let code = unsafe { ffi::krun_set_vm_config(self.id, vcpus, memory_mib) };
        check("krun_set_vm_config", code).map(drop)
    }

    pub(crate) fn split_irqchip(&self) -> Result<(), String> {
        // SAFETY: plain values; libkrun checks the context id.
        let code = unsafe { ffi::krun_split_irqchip(self.id, true) };
        check("krun_split_irqchip", code).map(drop)
    }

    /// No console, init or vsock that was not asked for; no vsock also means no TSI, which would
    /// put the guest's sockets on the host.
    pub(crate) fn disable_implicit_devices(&self) -> Result<(), String> {
        // SAFETY: a plain integer; libkrun checks the context id.
        let code = unsafe { krun_disable_implicit_console(self.id) };
        check("krun_disable_implicit_console", code)?;
        // SAFETY: a plain integer; libkrun checks the context id.
        let code = unsafe { krun_disable_implicit_init(self.id) };
        check("krun_disable_implicit_init", code)?;
        // SAFETY: a plain integer; libkrun checks the context id.
        let code = unsafe { ffi::krun_disable_implicit_vsock(self.id) };
        check("krun_disable_implicit_vsock", code).map(drop)
    }

    pub(crate) fn set_kernel(
        &self,
        kernel: &str,
        initramfs: &str,
        command_line: &str,
    ) -> Result<(), String> {
        let kernel = c_string(kernel)?;
        let initramfs = c_string(initramfs)?;
        let command_line = c_string(command_line)?;
        // SAFETY: the three strings end in NUL and outlive the call, which copies them.
        let code = unsafe {
            ffi::krun_set_kernel(
                self.id,
                kernel.as_ptr(),
                ffi::KRUN_KERNEL_FORMAT_ELF,
                initramfs.as_ptr(),
                command_line.as_ptr(),
            )
        };
        check("krun_set_kernel", code).map(drop)
    }

    pub(crate) fn add_disk(&self, disk: &KrunDisk<'_>) -> Result<(), String> {
        let (id, path) = (c_string(disk.id)?, c_string(disk.path)?);
        let format = if disk.vmdk { DISK_FORMAT_VMDK } else { ffi::KRUN_DISK_FORMAT_RAW };
        // SAFETY: both strings end in NUL and outlive the call, which copies them.
        let code = unsafe {
            krun_add_disk3(
                self.id,
                id.as_ptr(),
                path.as_ptr(),
                format,
                disk.read_only,
                false,
                SYNC_FULL,
            )
        };
        check("krun_add_disk3", code).map(drop)
    }

    /// A directory of the host by virtio-fs, with no window through which a guest would map its files.
    pub(crate) fn add_share(&self, tag: &str, path: &str, read_only: bool) -> Result<(), String> {
        let (tag, path) = (c_string(tag)?, c_string(path)?);
        // SAFETY: both strings end in NUL and outlive the call, which copies them.
        let code =
            unsafe { ffi::krun_add_virtiofs3(self.id, tag.as_ptr(), path.as_ptr(), 0, read_only) };
        check("krun_add_virtiofs3", code).map(drop)
    }

    /// A network device whose frames go over `socket`, none of whose checksums or segments are left to
    /// the other end.
    pub(crate) fn add_net(&self, socket: BorrowedFd<'_>, mac: [u8; 6]) -> Result<(), String> {
        let copy =
            socket.try_clone_to_owned().map_err(|error| format!("copy a socket: {error}"))?;
        // SAFETY: a null path stands for none; the six bytes of the address are read during the call;
        // libkrun owns the socket from here on, and the copy is given up to it.
        let code = unsafe {
            ffi::krun_add_net_unixstream(
                self.id,
                ptr::null(),
                copy.into_raw_fd(),
                mac.as_ptr(),
                NO_FEATURES,
                NO_FLAGS,
            )
        };
        check("krun_add_net_unixstream", code).map(drop)
    }

    /// One console device: port 0 is the kernel's console on a terminal, port 1 the agent's.
    pub(crate) fn add_console(
        &self,
        terminal: BorrowedFd<'_>,
        agent: BorrowedFd<'_>,
    ) -> Result<(), String> {
        // SAFETY: a plain integer; libkrun checks the context id.
        let console = unsafe { krun_add_virtio_console_multiport(self.id) };
        let console = check("krun_add_virtio_console_multiport", console)?;
        // SAFETY: a null name means none; the descriptor is open during the call, and libkrun
        // duplicates it when the VM starts, before which the caller keeps it open.
        let code = unsafe {
            krun_add_console_port_tty(self.id, console, ptr::null(), terminal.as_raw_fd())
        };
        check("krun_add_console_port_tty", code)?;
        let name = c_string(PORT_NAME)?;
        let agent = agent.as_raw_fd();
        // SAFETY: the name ends in NUL and outlives the call, which copies it; the descriptor is
        // open, and stays so until libkrun has duplicated it.
        let code =
            unsafe { krun_add_console_port_inout(self.id, console, name.as_ptr(), agent, agent) };
        check("krun_add_console_port_inout", code).map(drop)
    }

    /// A serial port, the first, that writes to `terminal` and hears nothing.
    pub(crate) fn add_serial_console(&self, terminal: BorrowedFd<'_>) -> Result<(), String> {
        let copy =
            terminal.try_clone_to_owned().map_err(|error| format!("copy a console: {error}"))?;
        // SAFETY: -1 stands for no input; libkrun owns the output from here on, and the copy is given
        // up to it.
        let code = unsafe { krun_add_serial_console_default(self.id, -1, copy.into_raw_fd()) };
        check("krun_add_serial_console_default", code).map(drop)
    }

    /// Becomes the VM. Comes back only when libkrun refused, with the reason.
    pub(crate) fn start(self) -> String {
        // SAFETY: the context is complete; on success the call never returns and the process ends
        // with the VM, which is what this process is for.
        let code = unsafe { ffi::krun_start_enter(self.id) };
        check("krun_start_enter", code).err().unwrap_or_else(|| "libkrun returned".into())
    }
}

/// libkrun answers with a value from 0 up, or a negated errno.
fn check(function: &str, code: i32) -> Result<u32, String> {
    u32::try_from(code).map_err(|_| {
        format!("{function}: {}", std::io::Error::from_raw_os_error(code.saturating_neg()))
    })
}

fn c_string(text: &str) -> Result<CString, String> {
    CString::new(text).map_err(|_| format!("libkrun takes no NUL byte: {text:?}"))
}
