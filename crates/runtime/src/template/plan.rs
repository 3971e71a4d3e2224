//! The launcher's part in templates: it says beforehand what shape the machine has and gets files ready,
//! and sees afterwards that there is a template for the next.
//!
//! ```text
//!  start of an image      1st: cold boot      2nd: template             3rd: image template
//!  built behind its back       template            image template
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
};

use microsandbox_snapshot::clone_file;
use serde::{Deserialize, Serialize};

use super::{BuildOrder, Templates, build, remove_tree};
use crate::{
    LaunchConfig, Program, RunRecord, SandboxDir, SandboxLock, StartingPoint,
    checkpoint::{FileDigests, Shape, UPPER, root_of, shape_of},
    record::{ColdReason, Origin},
    supervisor::vm_spec,
    vmm::Devices,
};

/// What a machine can go on from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Shapes {
    /// That of the machine, or why it has none.
    pub(crate) machine: Result<Shape, ColdReason>,
    /// That of the machine with its root mounted. The copy of the template's writable disk is in the
    /// sandbox's directory, if there is such a template.
    pub(crate) image: Option<Shape>,
}

/// What a launcher knows of templates before the start.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) shapes: Shapes,
    /// Set where a template of the image should be built after this start.
    prepared: Option<Prepared>,
}

impl Plan {
    /// A plan without templates.
    pub(crate) const fn cold(why: ColdReason) -> Self {
        Self { shapes: Shapes { machine: Err(why), image: None }, prepared: None }
    }

    /// Looks for templates and gets ready what is needed of them. Reads the guest's and the VMM's
    /// files, once. Blocks.
    pub(crate) fn make(config: &LaunchConfig) -> Self {
        if config.devices != Devices::default() {
            return Self::cold(ColdReason::Devices);
        }
        let mut digests = FileDigests::open(&config.digests);
        let machine = match shape_of(&config.vmm, &vm_spec(config), &mut digests) {
            Ok(Some(shape)) => shape,
            Ok(None) => return Self::cold(ColdReason::Driver),
            Err(error) => {
                return Self::cold(ColdReason::Unusable { detail: error.to_string() });
            }
        };
        let Some(templates) = config.templates() else {
            if let Some(unkept) = &config.templates {
                unkept.clear();
            }
            return Self { shapes: Shapes { machine: Ok(machine), image: None }, prepared: None };
        };
        let root = match &config.from {
            StartingPoint::Fresh(fresh) => root_of(fresh).ok(),
            _ => None,
        };
        let image = root.map(|root| Shape { root, ..machine.clone() });
        let mut plan = Self { shapes: Shapes { machine: Ok(machine), image }, prepared: None };
        plan.prepare(templates, &SandboxDir::new(&config.dir));
        plan
    }

    fn prepare(&mut self, templates: &Templates, dir: &SandboxDir) {
        let (Ok(machine), Some(image)) = (&self.shapes.machine, &self.shapes.image) else { return };
        let cloned = match templates.find(image) {
            Ok(Some(template)) => template.clone_upper(&dir.template_upper_path()),
            Ok(None) => {
                if templates.place(machine).exists() && templates.wants(image) {
                    let prepared = Prepared::make(templates, image, dir);
                    let problem = |error: &_| tracing::warn!(%error, "no template of the image");
                    self.prepared = prepared.inspect_err(problem).ok().flatten();
                }
                return;
            }
            Err(error) => Err(error),
        };
        if let Err(error) = cloned {
            tracing::warn!(%error, "template retired");
            templates.retire(&image.key());
            self.shapes.image = None;
        }
    }

    /// Removes templates that the start found to be of no use, and has one built that it would have
    /// liked to find. Waits for nothing.
    pub(crate) fn provide_for_the_next(
        self,
        program: &Program,
        config: &LaunchConfig,
        run: &RunRecord,
    ) {
        let (Some(templates), Ok(machine)) = (config.templates(), self.shapes.machine) else {
            return;
        };
        for failed in &run.failed_templates {
            templates.retire(&failed.key);
        }
        let claimed = match (&run.origin, self.prepared) {
            (Some(Origin::Cold { .. }), _) if templates.wants(&machine) => {
                // Another start may be first.
                templates.claim(&machine).map(|lock| Some((machine, lock?)))
            }
            (Some(Origin::Template { .. }), Some(prepared)) => Ok(prepared.hand_over()),
            _ => return,
        };
        let (shape, lock) = match claimed {
            Ok(Some(claimed)) => claimed,
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "no place for templates"),
        };
        let order = BuildOrder {
            shape,
            templates: templates.clone(),
            vmm: config.vmm.clone(),
            spec: vm_spec(config),
            confinement: config.confinement.clone(),
            log: config.log.clone(),
        };
        if let Err(error) = build::start(program, &order, &lock) {
            tracing::warn!(%error, "could not have a template built");
        }
    }
}

/// The begin of an image's template: a copy of the writable disk before anybody has used it.
#[derive(Debug)]
struct Prepared {
    shape: Shape,
    folder: PathBuf,
    /// Held so that nobody else builds there, or clears it away; none once it was handed over.
    lock: Option<SandboxLock>,
}

impl Prepared {
    /// `None` when another process is at it.
    fn make(templates: &Templates, shape: &Shape, dir: &SandboxDir) -> io::Result<Option<Self>> {
        let Some(lock) = templates.claim(shape)? else { return Ok(None) };
        let folder = templates.new_path(shape);
        remove_tree(&folder)?;
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let prepared = Self { shape: shape.clone(), folder, lock: Some(lock) };
        let copy = prepared.folder.join(UPPER);
        let copy = File::options().read(true).write(true).create_new(true).open(copy)?;
        clone_file(&File::open(dir.upper_path())?, &copy)?;
        Ok(Some(prepared))
    }

    /// Leaves the rest to a builder.
    fn hand_over(mut self) -> Option<(Shape, SandboxLock)> {
        self.lock.take().map(|lock| (self.shape.clone(), lock))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if self.lock.is_some()
            && let Err(error) = remove_tree(&self.folder)
        {
            tracing::warn!(%error, "could not take back the begin of a template");
        }
    }
}
