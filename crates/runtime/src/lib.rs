//! Sandbox processes on the host: supervisor, relay, VMM drivers.
//!
//! One sandbox is two processes of this crate. The facade starts the first and talks to it:
//!
//! ```text
//!  launch ──socket──▶ supervisor ──socket──▶ vmm (libkrun here, or execs QEMU)
//!    │  config, lock     │  lock, records, console log        │ virtio-console port
//!    └─ client ─agent.sock─ relay ───────────── frames ───────▶ agent in the guest
//! ```
//!
//! Configuration and descriptors travel over the inherited socket, never in argv or environment.
//! Nothing here knows of images, databases or names outside one sandbox's directory.

mod checkpoint;
mod client;
pub mod confine;
mod dir_watch;
mod error;
mod exec_log;
mod guest;
mod handover;
mod host_usage;
mod launch;
mod link;
mod lock;
mod log_watch;
mod orders;
mod own_commands;
mod program;
mod record;
mod role;
mod sandbox_dir;
pub mod step;
mod supervisor;
mod sys;
mod template;
mod vmm;

pub use checkpoint::{Checkpoint, CheckpointError, Shape};
pub use client::{
    AgentClient, ExecStream, ExecUpdate, StdinWriter,
    files::FileStream,
    jobs::{JobStream, JobUpdate},
};
pub use confine::{Applied, Confinement, ConfinementRecord, Layer};
pub use error::{Error, Result, explained};
pub use exec_log::{ExecContent, ExecLogReader, ExecRecord};
#[cfg(feature = "embed-guest")]
pub use guest::carried::{CarriedFile, CarriedGuest};
pub use guest::{BuildHold, Guest, GuestStore};
pub use handover::BUILD;
pub use host_usage::HostUsage;
pub use launch::{Launched, Owner, launch};
pub use lock::{LockMark, SandboxLock};
pub use log_watch::LogWatch;
pub use orders::{Belongings, FreshRoot, LaunchConfig, StartingPoint};
pub use own_commands::CLONE_HOOK;
pub use program::Program;
pub use record::{
    BootStep, BootTimes, ColdReason, EndReason, ExitRecord, FailedTemplate, Origin, RunRecord,
    VmmExit,
};
pub use role::{init, own_program};
pub use sandbox_dir::SandboxDir;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub use supervisor::fuzz;
pub use sys::watch_readable;
pub use template::{TemplateLimits, Templates};
pub use vmm::{
    Accel, Capabilities, DeviceFault, DeviceSockets, Devices, DiskFormat, DiskSpec, Driver,
    KvmProbe, MacAddress, NetSpec, SelectedVmm, ShareServer, ShareSpec, VmmChoice, VmmKind,
    find_qemu, host_tsc_khz, probe_kvm, select_vmm,
};

/// The wire to the agent, for those who build requests.
pub use microsandbox_protocol as wire;
