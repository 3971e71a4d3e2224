//! The home: where state lies, and which programs and settings go with it.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use microsandbox_db::Catalogue;
use microsandbox_image::ImageStore;
use microsandbox_runtime::{
    Accel, BuildHold, Confinement, Guest, GuestStore, KvmProbe, Program, SandboxDir, SelectedVmm,
    TemplateLimits, Templates, VmmChoice, confine::UnknownLayer, find_qemu, host_tsc_khz,
    own_program, probe_kvm, select_vmm,
};
use microsandbox_snapshot::SnapshotStore;
use rustix::process::geteuid;

use crate::{
    BootMode, MicrosandboxError, MicrosandboxResult, env, names::validate_sandbox_name,
    thread::on_thread,
};

/// One home and the settings of this process. Making one does no I/O but reading the environment.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    root: PathBuf,
    vmm: VmmChoice,
    boot: BootMode,
    template_limits: TemplateLimits,
    kernel: Option<PathBuf>,
    confinement: Confinement,
    kernel_arguments: String,
    skip_probe: bool,
    log: String,
}

impl Home {
    /// The home that the environment names.
    pub(crate) fn from_env() -> MicrosandboxResult<Self> {
        let invalid = |message: String| MicrosandboxError::InvalidConfig(message);
        let root = env::read(env::MSB_HOME)
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env::read(env::HOME)?).join(".microsandbox")))
            .ok_or_else(|| invalid("neither MSB_HOME nor HOME is set".into()))?;
        let root = absolute(root)?;
        let vmm = match env::read_text(env::MSB_VMM).as_deref() {
            None | Some("auto") => VmmChoice::Auto,
            Some("libkrun") => VmmChoice::Libkrun,
            Some("qemu") => VmmChoice::Qemu,
            Some(other) => {
                return Err(invalid(format!("MSB_VMM is {other:?}, not auto, libkrun or qemu")));
            }
        };
        let boot = match env::read_text(env::MSB_BOOT).as_deref() {
            None | Some("template") => BootMode::Template,
            Some("cold") => BootMode::Cold,
            Some(other) => {
                return Err(invalid(format!("MSB_BOOT is {other:?}, not cold or template")));
            }
        };
        let template_limits = template_limits()?;
        let kernel = env::read(env::MSB_KERNEL).map(PathBuf::from).map(absolute).transpose()?;
        let confinement = env::read_text(env::MSB_CONFINEMENT).map(|text| text.parse());
        let confinement = confinement.transpose().map_err(|unknown: UnknownLayer| {
            invalid(format!("{}: {unknown}", env::MSB_CONFINEMENT))
        })?;
        let confinement = confinement.unwrap_or_default();
        let mut kernel_arguments = env::read_text(env::MSB_KERNEL_ARGS).unwrap_or_default();
        let skip_probe = match env::read_text(env::MSB_KVM_PROBE).as_deref() {
            None | Some("auto") => false,
            Some("skip") => true,
            Some(other) => {
                return Err(invalid(format!("MSB_KVM_PROBE is {other:?}, not auto or skip")));
            }
        };
        if skip_probe {
            // Whoever tries such a KVM wants to see how far a kernel gets on it.
            kernel_arguments.insert_str(0, "ignore_loglevel ");
        }
        let log = env::read_text(env::MSB_LOG).unwrap_or_else(|| "warn".into());
        Ok(Self {
            root,
            vmm,
            boot,
            template_limits,
            kernel,
            confinement,
            kernel_arguments,
            skip_probe,
            log,
        })
    }

    /// The directory of all state.
    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    pub(crate) fn images(&self) -> ImageStore {
        ImageStore::open(self.root.join("images"))
    }

    pub(crate) fn snapshots(&self) -> SnapshotStore {
        SnapshotStore::open(self.root.join("snapshots"))
    }

    /// The catalogue for writing, made where it is missing.
    pub(crate) async fn catalogue(&self) -> MicrosandboxResult<Catalogue> {
        Ok(Catalogue::open(self.catalogue_path()).await?)
    }

    /// The catalogue for reading; `None` when there is none yet.
    pub(crate) fn existing_catalogue(&self) -> MicrosandboxResult<Option<Catalogue>> {
        Ok(Catalogue::open_existing(self.catalogue_path())?)
    }

    fn catalogue_path(&self) -> PathBuf {
        self.root.join("db/msb.db")
    }

    pub(crate) fn sandboxes_path(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// The directory of a sandbox; refuses names that are no single path component.
    pub(crate) fn sandbox_dir(&self, name: &str) -> MicrosandboxResult<SandboxDir> {
        validate_sandbox_name(name)?;
        Ok(SandboxDir::new(self.sandboxes_path().join(name)))
    }

    /// The guest to boot: the one that this program carries, unpacked if need be, else the one that
    /// `guest/current` names; with the kernel that `MSB_KERNEL` names, if it does.
    ///
    /// Blocks while it is unpacked.
    pub(crate) fn guest(&self) -> MicrosandboxResult<Guest> {
        let builds = GuestStore::at(self.root.join("guest"));
        #[cfg(feature = "embed-guest")]
        let guest = builds.unpack(&crate::carried::GUEST)?;
        #[cfg(not(feature = "embed-guest"))]
        let guest = builds.current();
        let kernel = self.kernel.clone().unwrap_or_else(|| guest.kernel.clone());
        Ok(Guest { kernel, arguments: self.kernel_arguments.clone(), ..guest })
    }

    /// As [`Home::guest`], held.
    fn held_guest(&self) -> MicrosandboxResult<(Guest, Option<BuildHold>)> {
        let guest = self.guest()?;
        if let Some(hold) = guest.hold() {
            return Ok((guest, Some(hold)));
        }
        // Another may have been installed in this moment, and this one removed.
        let guest = self.guest()?;
        let hold = guest.hold();
        Ok((guest, hold))
    }

    /// Root reaches every file by a capability that the processes of a sandbox do without.
    fn check_owner(&self) -> MicrosandboxResult<()> {
        let home = fs::metadata(&self.root);
        let owner = home.map_err(MicrosandboxError::file("find the home", &self.root))?.uid();
        match geteuid().is_root() && owner != 0 {
            true => Err(MicrosandboxError::HomeOfAnother { home: self.root.clone(), owner }),
            false => Ok(()),
        }
    }

    /// The program that supervises sandboxes: this one if it can, else an installed `msb`.
    pub(crate) fn program(&self) -> MicrosandboxResult<Program> {
        if let Some(program) = own_program() {
            return Ok(program);
        }
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("msb")));
        let in_path = env::read(env::PATH);
        let in_path = in_path.iter().flat_map(std::env::split_paths).map(|dir| dir.join("msb"));
        env::read(env::MSB_PATH)
            .map(PathBuf::from)
            .into_iter()
            .chain(beside)
            .chain([self.root.join("bin/msb")])
            .chain(in_path)
            .find(|path| path.is_file())
            .ok_or(MicrosandboxError::ProgramNotFound)
            .and_then(absolute)
            .map(Program::at)
    }

    /// Whether KVM runs guest code here. Blocks for up to half a second, once per boot of the host.
    pub(crate) fn probe(&self, program: &Program) -> KvmProbe {
        if self.skip_probe {
            let detail = "taken to work, as MSB_KVM_PROBE says".into();
            return KvmProbe { works: true, detail, took_us: 0 };
        }
        probe_kvm(program, &self.root.join("kvm-probe.json"))
    }

    pub(crate) fn qemu(&self) -> Option<PathBuf> {
        // A login shell of an ordinary user may lack these; QEMU is there all the same.
        let path = env::read(env::PATH).unwrap_or_else(|| "/usr/bin:/usr/local/bin".into());
        find_qemu(&path).and_then(|program| absolute(program).ok())
    }

    /// What a sandbox of this home runs with, checked before anything is made.
    pub(crate) async fn machinery(&self) -> MicrosandboxResult<Machinery> {
        self.check_owner()?;
        let home = self.clone();
        let (guest, build) = on_thread("find-guest", move || home.held_guest()).await?;
        guest.check()?;
        let program = self.program()?;
        let (home, probing) = (self.clone(), program.clone());
        let probe = tokio::task::spawn_blocking(move || home.probe(&probing));
        let probe = probe.await.unwrap_or_else(|error| KvmProbe {
            works: false,
            detail: format!("run the KVM probe: {error}"),
            took_us: 0,
        });
        let mut vmm = select_vmm(self.vmm, &probe, self.qemu())?;
        if vmm.accel == Accel::Tcg {
            let cache = self.root.join("tsc.json");
            let measure = move || Ok::<_, MicrosandboxError>(host_tsc_khz(&cache));
            vmm.tsc_khz = on_thread("measure-tsc", measure).await?;
        }
        Ok(Machinery {
            program,
            guest,
            _build: build,
            vmm,
            boot: self.boot,
            templates: Templates::new(self.root.join("templates"), self.template_limits),
            digests: self.root.join("digests.json"),
            confinement: self.confinement.clone(),
            log: self.log.clone(),
        })
    }

    /// What `auto` or the user's wish comes to.
    pub(crate) fn selected_vmm(&self, probe: &KvmProbe) -> MicrosandboxResult<SelectedVmm> {
        Ok(select_vmm(self.vmm, probe, self.qemu())?)
    }

    /// Makes the home itself, for its owner alone.
    pub(crate) fn ensure(&self) -> MicrosandboxResult<()> {
        use std::os::unix::fs::DirBuilderExt;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root);
        made.map_err(MicrosandboxError::file("make the home", &self.root))
    }
}

fn template_limits() -> MicrosandboxResult<TemplateLimits> {
    let number = |name: &'static str| {
        let invalid = |text: &str| {
            MicrosandboxError::InvalidConfig(format!("{name} is {text:?}, not a whole number"))
        };
        let read = |text: String| text.parse::<u32>().map_err(|_| invalid(&text));
        env::read_text(name).map(read).transpose()
    };
    let mut limits = TemplateLimits::default();
    if let Some(count) = number(env::MSB_MAX_TEMPLATES)? {
        limits.count = usize::try_from(count).unwrap_or(usize::MAX);
    }
    if let Some(mib) = number(env::MSB_MAX_TEMPLATES_MIB)? {
        limits.bytes = u64::from(mib) << 20;
    }
    Ok(limits)
}

/// The processes of a sandbox work in `/`: what they are told must not depend on where we are.
fn absolute(path: PathBuf) -> MicrosandboxResult<PathBuf> {
    std::path::absolute(&path).map_err(MicrosandboxError::file("find", path))
}

/// The parts that turn a definition into a machine.
#[derive(Debug)]
pub(crate) struct Machinery {
    pub(crate) program: Program,
    pub(crate) guest: Guest,
    /// Keeps the guest's files where they are.
    _build: Option<BuildHold>,
    pub(crate) vmm: SelectedVmm,
    /// What machines begin as where their definition does not say.
    pub(crate) boot: BootMode,
    pub(crate) templates: Templates,
    /// File that remembers digests of kernel, agent and VMM.
    pub(crate) digests: PathBuf,
    pub(crate) confinement: Confinement,
    /// Directives for the supervisor's log.
    pub(crate) log: String,
}
