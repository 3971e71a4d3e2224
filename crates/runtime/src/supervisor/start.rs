//! How a run gets its machine: from a template where there is one, else by a cold boot, which has a
//! template built for the next.
//!
//! ```text
//!  template? ─ no ──────────────────────────────▶ cold boot ─ ready ─▶ build one, in the background
//!      └ yes ─▶ restore ─ ready
//!                  └ failed ─▶ retire it ─▶ cold boot ─ ready ─▶ build one
//! ```

use std::sync::Arc;

use microsandbox_protocol::Ready;

use super::{boot, machine::Failed, machine::Machine};
use crate::{
    LaunchConfig, RunRecord,
    checkpoint::{Checkpoint, FileDigests, Shape, shape_of},
    record::{ColdReason, Origin},
    template::{BuildOrder, Templates, build},
};

/// Where this run's machine can come from.
#[derive(Debug)]
pub(super) struct Source {
    /// Templates and the shape of this machine, where it can have one.
    shaped: Option<(Templates, Shape)>,
    template: Option<Arc<Checkpoint>>,
}

impl Source {
    /// Looks for a template; notes in `record` what was found.
    pub(super) fn find(config: &LaunchConfig, record: &mut RunRecord) -> Self {
        let nothing = Self { shaped: None, template: None };
        let cold = |why| {
            record.origin = Some(Origin::Cold { why });
            nothing
        };
        let Some(root) = &config.templates else { return cold(ColdReason::Declined) };
        let mut digests = FileDigests::open(&config.digests);
        let shape = match shape_of(&config.vmm, &boot::vm_spec(config), &mut digests) {
            Ok(Some(shape)) => shape,
            Ok(None) => return cold(ColdReason::Driver),
            Err(error) => return cold(ColdReason::Unusable { detail: error.to_string() }),
        };
        let templates = Templates::new(root);
        let (template, origin) = match templates.find(&shape) {
            Ok(Some(template)) => (Some(template), Origin::Template { key: shape.key() }),
            Ok(None) => (None, Origin::Cold { why: ColdReason::NotBuilt }),
            Err(error) => {
                tracing::warn!(%error, "template retired");
                templates.retire(&shape);
                let detail = error.to_string();
                (None, Origin::Cold { why: ColdReason::Unusable { detail } })
            }
        };
        record.origin = Some(origin);
        Self { shaped: Some((templates, shape)), template: template.map(Arc::new) }
    }

    /// Boots a machine into `slot`.
    ///
    /// # Cancel safety
    /// The machine is in its slot.
    pub(super) async fn boot(
        &mut self,
        config: &LaunchConfig,
        record: &mut RunRecord,
        slot: &mut Option<Machine>,
    ) -> Result<Ready, Failed> {
        if let Some(template) = self.template.take() {
            match boot::boot(config, Some(&template), record, slot).await {
                Ok(ready) => {
                    template.mark_used();
                    return Ok(ready);
                }
                Err(failure) => {
                    tracing::warn!(%failure, "template retired; booting from the beginning");
                    if let Some(machine) = slot.take() {
                        machine.kill().await;
                    }
                    if let Some((templates, shape)) = &self.shaped {
                        templates.retire(shape);
                    }
                    let why = ColdReason::Unusable { detail: failure.to_string() };
                    record.origin = Some(Origin::Cold { why });
                }
            }
        }
        boot::boot(config, None, record, slot).await
    }

    /// Has a template built after a cold boot that could have used one. Waits for nothing.
    pub(super) fn provide_for_the_next(&self, config: &LaunchConfig, record: &RunRecord) {
        let Some((templates, shape)) = &self.shaped else { return };
        if matches!(record.origin, Some(Origin::Template { .. })) || !templates.wants(shape) {
            return;
        }
        let order = BuildOrder {
            key: shape.key(),
            templates: templates.path().to_owned(),
            digests: config.digests.clone(),
            vmm: config.vmm.clone(),
            spec: boot::vm_spec(config),
            log: config.log.clone(),
        };
        if let Err(error) = build::start(&order) {
            tracing::warn!(%error, "could not have a template built");
        }
    }
}
