//! Confinement: what a process of a sandbox can still do once it has begun its work.
//!
//! ```text
//!  Confinement (the wish) ─▶ Profile (plain data) ─▶ Walls (ready to apply) ─▶ Applied (run.json)
//! ```
//!
//! Which files a process may open is said in `files`, which system calls it may make in `calls`,
//! and what else it gives up in `process`. `docs/security.md` tells the whole story.

pub(crate) mod calls;
pub(crate) mod files;
pub(crate) mod process;

use std::{fmt, io, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, sys::confine as sys};

/// A layer of confinement that the host may lack, and that can be left out.
///
/// What always holds beside them needs nothing of the host: no new privileges, no capabilities, an
/// empty environment, no inherited descriptors, no core dumps, a session of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// Only the listed files, no TCP, no signals to others (`landlock(7)`, Linux 5.13).
    Landlock,
    /// Private user, mount, network, IPC and host name namespaces (`namespaces(7)`). VMM only.
    Namespaces,
    /// Only the listed system calls (`seccomp(2)`).
    Seccomp,
}

impl Layer {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Landlock, Self::Namespaces, Self::Seccomp];

    /// Its stable name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Landlock => "landlock",
            Self::Namespaces => "namespaces",
            Self::Seccomp => "seccomp",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How the processes of a sandbox are to be confined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The layers that are wanted.
    pub layers: Vec<Layer>,
    /// Refuse to start where the host lacks one of them.
    pub required: bool,
}

/// Every layer the host has.
impl Default for Confinement {
    fn default() -> Self {
        Self { layers: Layer::ALL.to_vec(), required: false }
    }
}

/// `auto`, `required`, `off`, or the names of layers with commas between.
impl FromStr for Confinement {
    type Err = UnknownLayer;

    fn from_str(text: &str) -> std::result::Result<Self, UnknownLayer> {
        let layer = |name: &str| {
            let known = Layer::ALL.into_iter().find(|layer| layer.name() == name);
            known.ok_or_else(|| UnknownLayer(name.to_owned()))
        };
        match text {
            "auto" => Ok(Self::default()),
            "off" => Ok(Self { layers: Vec::new(), required: false }),
            "required" => Ok(Self { required: true, ..Self::default() }),
            names => {
                let layers = names.split(',').map(layer).collect::<std::result::Result<_, _>>()?;
                Ok(Self { layers, required: false })
            }
        }
    }
}

/// A word that names no layer.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not auto, required, off, nor one of landlock, namespaces, seccomp")]
pub struct UnknownLayer(String);

impl Confinement {
    fn has(&self, layer: Layer) -> bool {
        self.layers.contains(&layer)
    }

    /// Says which wanted layer the host lacks, where all are required, or `indispensable` is the one.
    ///
    /// # Errors
    /// [`Error::Unconfined`].
    pub(crate) fn check(&self, indispensable: Option<Layer>) -> Result<()> {
        let needed = |layer: &&Layer| self.required || indispensable == Some(**layer);
        let mut needed = self.layers.iter().filter(needed).peekable();
        if needed.peek().is_none() {
            return Ok(());
        }
        let host = probe();
        match needed.find_map(|layer| host.lacks(*layer)) {
            Some((layer, why)) => Err(Error::Unconfined { layer, why }),
            None => Ok(()),
        }
    }
}

/// What a process of a sandbox was confined with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The layers that hold.
    pub layers: Vec<Layer>,
    /// Version of the kernel's Landlock interface, if that layer holds: later ones refuse more.
    pub landlock_abi: Option<u32>,
}

/// How the processes of a run are confined, as `run.json` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfinementRecord {
    /// Layers that were wanted.
    pub wanted: Vec<Layer>,
    /// The process that parses what the guest says.
    pub supervisor: Applied,
    /// The process that is the virtual machine.
    pub vmm: Applied,
}

impl Applied {
    /// What this host makes of the wish, for a process without namespaces of its own.
    pub(crate) fn expected(wanted: &Confinement) -> Self {
        let landlock_abi = sys::landlock_abi().filter(|_| wanted.has(Layer::Landlock));
        let seccomp = wanted.has(Layer::Seccomp) && sys::seccomp_available();
        let layers = [landlock_abi.map(|_| Layer::Landlock), seccomp.then_some(Layer::Seccomp)];
        Self { layers: layers.into_iter().flatten().collect(), landlock_abi }
    }

    pub(crate) fn has(&self, layer: Layer) -> bool {
        self.layers.contains(&layer)
    }
}

/// What this host has to confine with.
#[derive(Debug)]
#[non_exhaustive]
pub struct HostConfinement {
    /// Version of the kernel's Landlock interface; none: not there, or not switched on.
    pub landlock_abi: Option<u32>,
    /// Whether the kernel filters system calls.
    pub seccomp: bool,
    /// Whether an ordinary process can make namespaces, and why not.
    pub namespaces: io::Result<()>,
}

impl HostConfinement {
    /// Why a layer is not there, if it is not.
    pub fn lacks(&self, layer: Layer) -> Option<(Layer, String)> {
        let why = match layer {
            Layer::Landlock if self.landlock_abi.is_none() => {
                "this kernel has no Landlock, or it is not switched on".to_owned()
            }
            Layer::Namespaces => match &self.namespaces {
                Ok(()) => return None,
                Err(error) => format!("make namespaces: {error}"),
            },
            Layer::Seccomp if !self.seccomp => "this kernel filters no system calls".to_owned(),
            _ => return None,
        };
        Some((layer, why))
    }
}

/// Looks at what this host has. Starts a process, to see whether it could make namespaces.
pub fn probe() -> HostConfinement {
    HostConfinement {
        landlock_abi: sys::landlock_abi(),
        seccomp: sys::seccomp_available(),
        namespaces: process::try_namespaces(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wish_is_read_from_words() {
        let read =
            |text: &str| text.parse::<Confinement>().map(|wish| (wish.layers, wish.required));
        assert_eq!(read("auto").unwrap(), (Layer::ALL.to_vec(), false));
        assert_eq!(read("required").unwrap(), (Layer::ALL.to_vec(), true));
        assert_eq!(read("off").unwrap(), (vec![], false));
        assert_eq!(
            read("seccomp,landlock").unwrap(),
            (vec![Layer::Seccomp, Layer::Landlock], false)
        );
        assert!(read("of").is_err() && read("").is_err() && read("landlock,").is_err());
    }

    #[test]
    fn a_host_without_a_layer_says_which() {
        let host = HostConfinement {
            landlock_abi: None,
            seccomp: true,
            namespaces: Err(io::Error::from_raw_os_error(libc::EPERM)),
        };
        let lacking = Layer::ALL.into_iter().filter_map(|layer| host.lacks(layer));
        let lacking: Vec<Layer> = lacking.map(|(layer, _)| layer).collect();
        assert_eq!(lacking, [Layer::Landlock, Layer::Namespaces]);
    }
}
