//! How a run gets its machine: from the best template there is, else by a cold boot.
//!
//! ```text
//!  template of the image? ─ no ─▶ of the machine? ─ no ─▶ cold boot ─▶ ready
//!       │        └── failed ────────▶│    └── failed ────────▶┘          ▲
//!       └───────────── restored ─────┴────────── restored ───────────────┘
//! ```
//!
//! The launcher hears which it was. It removes what failed and has one built where there was none
//! (`template::plan`): a supervisor may read templates and no more.

use std::{path::Path, sync::Arc};

use microsandbox_protocol::Ready;

use super::{
    boot::{self, Beginning},
    machine::{Failed, Machine, failed},
};
use crate::{
    BootStep, LaunchConfig, RunRecord, SandboxDir,
    checkpoint::{Checkpoint, Shape},
    error::explained,
    record::{ColdReason, FailedTemplate, Origin},
    template::{Templates, plan::Shapes},
    vmm::DeviceSockets,
};

/// Where this run's machine can come from.
#[derive(Debug)]
pub(super) struct Source {
    /// Templates to try, the best last.
    candidates: Vec<Candidate>,
    /// What it means when none of them will do.
    why_cold: ColdReason,
    /// The saved machine that it must go on from, if it must, or why it cannot.
    saved: Option<Result<Arc<Checkpoint>, Failed>>,
}

#[derive(Debug)]
struct Candidate {
    template: Arc<Checkpoint>,
    key: String,
    /// It has the root mounted, and its own writable disk is there beside the fresh one.
    has_root: bool,
}

impl Source {
    /// Looks for templates; notes in `record` what is of no use.
    pub(super) fn find(config: &LaunchConfig, shapes: Shapes, record: &mut RunRecord) -> Self {
        let mut source =
            Self { candidates: Vec::new(), why_cold: ColdReason::NotBuilt, saved: None };
        if let Some(folder) = config.from.saved() {
            record.origin = Some(Origin::Saved);
            return Self { saved: Some(saved(folder, shapes.machine)), ..source };
        }
        let (templates, machine) = match (config.templates(), shapes.machine) {
            (Some(templates), Ok(machine)) => (templates, machine),
            (None, _) => return Self { why_cold: ColdReason::Declined, ..source },
            (_, Err(why_cold)) => return Self { why_cold, ..source },
        };
        source.look_for(templates, &machine, record);
        if let Some(image) = shapes.image
            && SandboxDir::new(&config.dir).template_upper_path().exists()
        {
            source.look_for(templates, &image, record);
        }
        source
    }

    fn look_for(&mut self, templates: &Templates, shape: &Shape, record: &mut RunRecord) {
        let (key, has_root) = (shape.key(), !shape.root.is_empty());
        match templates.find(shape) {
            Ok(None) => {}
            Ok(Some(template)) => {
                self.candidates.push(Candidate { template: Arc::new(template), key, has_root });
            }
            Err(error) => self.failed(key, error.to_string(), record),
        }
    }

    fn failed(&mut self, key: String, detail: String, record: &mut RunRecord) {
        tracing::warn!(key, detail, "template of no use");
        self.why_cold = ColdReason::Unusable { detail: detail.clone() };
        record.failed_templates.push(FailedTemplate { key, detail });
    }

    /// Boots a machine into `slot`.
    ///
    /// # Cancel safety
    /// The machine is in its slot.
    pub(super) async fn boot(
        &mut self,
        config: &LaunchConfig,
        sockets: &DeviceSockets,
        record: &mut RunRecord,
        slot: &mut Option<Machine>,
    ) -> Result<Ready, Failed> {
        if let Some(saved) = self.saved.take() {
            // There is no other way to have what was in its memory.
            return boot::boot(config, sockets, Beginning::Saved(&saved?), record, slot).await;
        }
        while let Some(candidate) = self.candidates.pop() {
            match candidate.boot(config, sockets, record, slot).await {
                Ok(ready) => return Ok(ready),
                Err(detail) => {
                    if let Some(machine) = slot.take() {
                        machine.kill().await;
                    }
                    self.failed(candidate.key, detail, record);
                }
            }
        }
        record.origin = Some(Origin::Cold { why: self.why_cold.clone() });
        boot::boot(config, sockets, Beginning::Cold, record, slot).await
    }
}

impl Candidate {
    async fn boot(
        &self,
        config: &LaunchConfig,
        sockets: &DeviceSockets,
        record: &mut RunRecord,
        slot: &mut Option<Machine>,
    ) -> Result<Ready, String> {
        let key = self.key.clone();
        record.origin = Some(match self.has_root {
            true => Origin::ImageTemplate { key },
            false => Origin::Template { key },
        });
        let dir = SandboxDir::new(&config.dir);
        let upper = match self.has_root {
            true => Some(dir.use_template_upper().map_err(|error| error.to_string())?),
            false => None,
        };
        let beginning = match self.has_root {
            true => Beginning::ImageTemplate(&self.template),
            false => Beginning::Template(&self.template),
        };
        let ready = boot::boot(config, sockets, beginning, record, slot).await;
        let ready = ready.map_err(|failure| failure.to_string())?;
        if let Some(upper) = upper {
            upper.keep();
        }
        self.template.mark_used();
        Ok(ready)
    }
}

/// Opens a saved machine, which must be one of this shape.
fn saved(folder: &Path, shape: Result<Shape, ColdReason>) -> Result<Arc<Checkpoint>, Failed> {
    let refused = failed(BootStep::Restore);
    let shape = shape.map_err(|why| refused(format!("this VMM can restore nothing: {why:?}")))?;
    let checkpoint = Checkpoint::open(folder).map_err(|error| refused(explained(&error)))?;
    let checkpoint =
        checkpoint.ok_or_else(|| refused(format!("nothing is in {}", folder.display())))?;
    checkpoint.shape().check(&shape).map_err(|error| refused(error.to_string()))?;
    Ok(Arc::new(checkpoint))
}
