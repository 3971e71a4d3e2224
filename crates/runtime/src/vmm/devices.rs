//! The devices of a VM beside its console and the agent's port: disks, shares, a network interface.
//!
//! Plain data. Where the other half of a device is another process, the socket to that process goes
//! beside it ([`DeviceSockets`]), never through a path that the VMM would have to open.

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{Capabilities, VmmKind};
use crate::Layer;

/// Devices, in the order that the guest sees those of each kind in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Devices {
    /// Disks: `vda`, `vdb` and so on.
    pub disks: Vec<DiskSpec>,
    /// Directories of the host.
    pub shares: Vec<ShareSpec>,
    /// The network interface.
    pub net: Option<NetSpec>,
}

/// A disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpec {
    /// Letters and digits; the guest sees it as the disk's serial number.
    pub id: String,
    /// The file.
    pub path: PathBuf,
    /// What it is.
    pub format: DiskFormat,
    /// The guest cannot write to it.
    pub read_only: bool,
}

/// What the file of a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskFormat {
    /// The bytes of the disk.
    Raw,
    /// A text descriptor that names its extents; never guessed from what a guest may have written.
    Vmdk,
}

/// A directory of the host that the guest mounts by its tag (`mount -t virtiofs TAG DIR`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareSpec {
    /// What the guest knows it by: 1 to 36 bytes.
    pub tag: String,
    /// The directory, with no symbolic link at its end. A VMM whose shares a backend serves does not
    /// use it.
    pub path: PathBuf,
    /// The guest cannot change it: the VMM may not open it for writing. With a backend it is that
    /// which has to refuse.
    pub read_only: bool,
}

/// A network interface, `eth0`. Its frames go over a blocking stream socket, each behind its length as
/// four bytes, big-endian, as `passt` and QEMU's `-netdev stream` have it. The other end must outlive the
/// machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetSpec {
    /// Its address.
    pub mac: MacAddress,
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

/// As Linux writes it: `02:00:00:00:00:01`.
impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Who opens the files of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShareServer {
    /// A vhost-user backend such as `virtiofsd`: the VMM gets a socket to it and opens nothing.
    Backend,
    /// The VMM. What keeps it beneath the directory is Landlock.
    Vmm,
}

/// Sockets to the processes that are the other half of devices.
#[derive(Debug, Default)]
pub struct DeviceSockets {
    /// Takes and brings the frames of [`Devices::net`].
    pub net: Option<OwnedFd>,
    /// One for each of [`Devices::shares`], connected to its backend, where the driver wants one.
    pub shares: Vec<OwnedFd>,
}

/// Why a machine cannot have its devices.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceFault {
    /// There are other sockets than the devices need.
    #[error("its network interfaces and shares need {needed:?} sockets, but {came:?} came")]
    Sockets {
        /// How many there are: for network interfaces, for shares.
        came: (usize, usize),
        /// How many there should be.
        needed: (usize, usize),
    },
    /// virtio-fs has no room for the tag.
    #[error("the tag of a share has 1 to {TAG_BYTES} bytes: {tag:?}")]
    Tag {
        /// The tag.
        tag: String,
    },
    /// The VMM has no room for that many.
    #[error("{vmm} has room for {most} disks, shares and network interfaces, not {wanted}")]
    TooMany {
        /// Which VMM.
        vmm: VmmKind,
        /// Most it can have.
        most: u8,
        /// How many there should be.
        wanted: usize,
    },
}

/// `struct virtio_fs_config` of `linux/virtio_fs.h`.
const TAG_BYTES: usize = 36;

impl Devices {
    /// Whether this VMM can have them, with these sockets.
    pub(crate) fn check(
        &self,
        vmm: VmmKind,
        can: Capabilities,
        sockets: &DeviceSockets,
    ) -> Result<(), DeviceFault> {
        let wanted = self.disks.len() + self.shares.len() + usize::from(self.net.is_some());
        if wanted > usize::from(can.max_devices) {
            return Err(DeviceFault::TooMany { vmm, most: can.max_devices, wanted });
        }
        let unfit = |share: &&ShareSpec| !(1..=TAG_BYTES).contains(&share.tag.len());
        if let Some(share) = self.shares.iter().find(unfit) {
            return Err(DeviceFault::Tag { tag: share.tag.clone() });
        }
        let came = (usize::from(sockets.net.is_some()), sockets.shares.len());
        let needed = self.sockets(can.shares);
        if came != needed {
            return Err(DeviceFault::Sockets { came, needed });
        }
        Ok(())
    }

    /// How many sockets they need: for network interfaces, for shares.
    pub(crate) fn sockets(&self, server: ShareServer) -> (usize, usize) {
        let shares = match server {
            ShareServer::Backend => self.shares.len(),
            ShareServer::Vmm => 0,
        };
        (usize::from(self.net.is_some()), shares)
    }

    /// The layer of confinement without which a guest would reach more of the host than is shared.
    pub(crate) fn keeper(&self, server: ShareServer) -> Option<Layer> {
        (server == ShareServer::Vmm && !self.shares.is_empty()).then_some(Layer::Landlock)
    }
}

impl DeviceSockets {
    /// All, in the order in which they are handed on.
    pub(crate) fn iter(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.net.iter().chain(&self.shares).map(AsFd::as_fd)
    }

    /// What was handed on, for these devices.
    pub(crate) fn of(devices: &Devices, sockets: impl IntoIterator<Item = OwnedFd>) -> Self {
        let mut sockets = sockets.into_iter();
        let net = devices.net.and_then(|_| sockets.next());
        Self { net, shares: sockets.collect() }
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let net = self.net.as_ref().map(OwnedFd::try_clone).transpose()?;
        let shares = self.shares.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { net, shares })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn share(tag: &str) -> ShareSpec {
        ShareSpec { tag: tag.into(), path: "/shared".into(), read_only: true }
    }

    #[test]
    fn devices_that_there_is_no_room_or_no_socket_for_are_refused() {
        let net = Some(NetSpec { mac: MacAddress([2, 0, 0, 0, 0, 1]) });
        let can = |shares| Capabilities {
            pause: false,
            memory_snapshot: false,
            max_devices: 3,
            max_vcpus: 1,
            shares,
        };
        let socket = || OwnedFd::from(UnixStream::pair().unwrap().0);
        let refusal = |shares: &[&str], net, server, sockets: (usize, usize)| {
            let shares = shares.iter().copied().map(share).collect();
            let devices = Devices { disks: Vec::new(), shares, net };
            let sockets = DeviceSockets {
                net: (sockets.0 > 0).then(socket),
                shares: (0..sockets.1).map(|_| socket()).collect(),
            };
            let checked = devices.check(VmmKind::Qemu, can(server), &sockets);
            checked.err().map(|fault| fault.to_string())
        };
        let (own, backend) = (ShareServer::Vmm, ShareServer::Backend);
        assert_eq!(refusal(&["a", "b"], net, own, (1, 0)), None);
        assert_eq!(refusal(&["a", "b"], net, backend, (1, 2)), None);
        let too_many = "qemu has room for 3 disks, shares and network interfaces, not 4";
        assert_eq!(refusal(&["a", "b", "c"], net, own, (1, 0)).unwrap(), too_many);
        let few = "its network interfaces and shares need (1, 1) sockets, but (1, 0) came";
        assert_eq!(refusal(&["a"], net, backend, (1, 0)).unwrap(), few);
        assert!(refusal(&["a"], None, backend, (1, 0)).unwrap().contains("need (0, 1)"));
        assert!(refusal(&["a"], None, own, (0, 1)).unwrap().contains("need (0, 0)"));
        assert!(refusal(&[""], None, own, (0, 0)).unwrap().contains("1 to 36 bytes"));
        assert_eq!(refusal(&["x".repeat(36).as_str()], None, own, (0, 0)), None);
        assert!(refusal(&["x".repeat(37).as_str()], None, own, (0, 0)).is_some());
    }

    #[test]
    fn sockets_arrive_in_the_order_in_which_they_were_sent() {
        let devices = Devices {
            disks: Vec::new(),
            shares: vec![share("a")],
            net: Some(NetSpec { mac: MacAddress([0; 6]) }),
        };
        let sent = DeviceSockets {
            net: Some(UnixStream::pair().unwrap().0.into()),
            shares: vec![UnixStream::pair().unwrap().0.into()],
        };
        let copies: Vec<OwnedFd> = sent.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let came = DeviceSockets::of(&devices, copies);
        let cookie = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(cookie(&came.net.unwrap()), cookie(sent.net.as_ref().unwrap()));
        assert_eq!(cookie(&came.shares[0]), cookie(&sent.shares[0]));
    }
}
