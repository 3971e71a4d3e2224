//! Standing still and going on, and the state of processors and devices as bytes.
//!
//! The guest's memory is no part of that state: it is a shared file, which QEMU leaves out
//! (`x-ignore-shared`) and the supervisor holds itself.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream as StdUnixStream,
    },
    time::Duration,
};

use rustix::fs::{MemfdFlags, memfd_create};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    net::UnixStream,
    sync::broadcast::{self, error::RecvError},
    time::timeout,
};

use super::qmp::{Qmp, QmpError, QmpEvent};
use crate::checkpoint::MAX_DEVICES;

/// Longest that any of this may take; it is milliseconds, unless the host is in trouble.
const WITHIN: Duration = Duration::from_secs(10);

/// Name under which QEMU knows the descriptor that state goes through.
const CHANNEL: &str = "state";

impl Qmp {
    /// Stops the guest's processors; gives once they stand still.
    pub(crate) async fn pause(&self) -> Result<(), QmpError> {
        self.execute("stop", Value::Null, WITHIN).await.map(drop)
    }

    /// Lets them go on.
    pub(crate) async fn resume(&self) -> Result<(), QmpError> {
        self.execute("cont", Value::Null, WITHIN).await.map(drop)
    }

    /// The state of a machine that stands still. It can go on afterwards: no disk is touched.
    ///
    /// The command is named after its first user; nothing of it is particular to Xen
    /// (`qemu_save_device_state` in `migration/savevm.c`). Unlike a migration it does not ask whether
    /// disks could be handed over, which those of VMDK cannot (`vmdk_open` in `block/vmdk.c`): they stay
    /// where they are.
    ///
    /// # Errors
    /// [`QmpError`].
    pub(crate) async fn save_devices(&self) -> Result<Vec<u8>, QmpError> {
        let command = "xen-save-devices-state";
        let broken = |error: io::Error| refused(command, error.to_string());
        let (file, theirs) = state_file().map_err(broken)?;
        let set = self.add_fd(theirs, WITHIN).await?;
        let arguments = json!({ "filename": format!("/dev/fdset/{set}"), "live": false });
        let written = self.execute(command, arguments, WITHIN).await;
        self.execute("remove-fd", json!({ "fdset-id": set }), WITHIN).await?;
        written?;
        let mut state = Vec::new();
        file.take(MAX_DEVICES + 1).read_to_end(&mut state).map_err(broken)?;
        if state.len() as u64 > MAX_DEVICES {
            return Err(refused(command, "its state is larger than any machine's".into()));
        }
        Ok(state)
    }

    /// Gives a machine that was started to wait for it the state it goes on from. It stands still
    /// afterwards.
    ///
    /// # Errors
    /// [`QmpError`]; the machine is of no use then.
    pub(crate) async fn load_devices(&self, state: &[u8]) -> Result<(), QmpError> {
        let command = "migrate-incoming";
        let mut events = self.events();
        let mut channel = self.open_channel(command).await?;
        let arguments = json!({ "uri": format!("fd:{CHANNEL}") });
        self.execute(command, arguments, WITHIN).await?;
        let write = async move {
            // A VMM that stops reading says why in its event.
            let _stopped_reading = channel.write_all(state).await;
        };
        let loaded =
            timeout(WITHIN, async { tokio::join!(write, migrated(&mut events, command)).1 });
        loaded.await.unwrap_or(Err(QmpError::Deadline { command, within: WITHIN }))
    }

    /// Says what state is, and gives QEMU one end of a socket for it.
    async fn open_channel(&self, command: &'static str) -> Result<UnixStream, QmpError> {
        let on = |name: &str| json!({ "capability": name, "state": true });
        let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
        self.execute("migrate-set-capabilities", capabilities, WITHIN).await?;
        let opened = StdUnixStream::pair().and_then(|(ours, theirs)| {
            ours.set_nonblocking(true)?;
            Ok((UnixStream::from_std(ours)?, theirs))
        });
        let (ours, theirs) = opened.map_err(|error| refused(command, error.to_string()))?;
        self.pass_fd(CHANNEL, theirs.into(), WITHIN).await?;
        Ok(ours)
    }
}

/// Waits until the state has gone through.
async fn migrated(
    events: &mut broadcast::Receiver<QmpEvent>,
    command: &'static str,
) -> Result<(), QmpError> {
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(_)) => continue,
            Err(RecvError::Closed) => return Err(QmpError::Closed { command }),
        };
        match (event.name.as_str(), event.data["status"].as_str()) {
            ("MIGRATION", Some("completed")) => return Ok(()),
            ("MIGRATION", Some("failed")) => {
                return Err(refused(command, "it failed".into()));
            }
            _ => {}
        }
    }
}

/// A file in memory, and a descriptor that it can only be written through: QEMU takes no other.
fn state_file() -> io::Result<(File, OwnedFd)> {
    let file = File::from(memfd_create("msb-device-state", MemfdFlags::CLOEXEC)?);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let theirs = OpenOptions::new().write(true).open(path)?;
    Ok((file, theirs.into()))
}

fn refused(command: &'static str, reason: String) -> QmpError {
    QmpError::Refused { command, reason }
}
