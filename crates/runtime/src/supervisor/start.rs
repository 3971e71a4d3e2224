//! How a run gets its machine: from a template where there is one, else by a cold boot.
//!
//! ```text
//!  template? ─ no ───────────────▶ cold boot ─ ready
//!      └ yes ─▶ restore ─ ready        ▲
//!                  └ failed ───────────┘
//! ```
//!
//! The launcher hears which it was. It removes the template that failed and has one built where there
//! was none (`template::plan`): a supervisor may read templates and no more.

use std::sync::Arc;

use microsandbox_protocol::Ready;

use super::{boot, machine::Failed, machine::Machine};
use crate::{
    LaunchConfig, RunRecord,
    checkpoint::{Checkpoint, Shape},
    record::{ColdReason, Origin},
    template::Templates,
};

/// Where this run's machine can come from.
#[derive(Debug)]
pub(super) struct Source {
    template: Option<Arc<Checkpoint>>,
}

impl Source {
    /// Looks for a template of the machine's shape; notes in `record` what was found.
    pub(super) fn find(
        config: &LaunchConfig,
        shape: Result<Shape, ColdReason>,
        record: &mut RunRecord,
    ) -> Self {
        let found = match (&config.templates, shape) {
            (Some(root), Ok(shape)) => match Templates::new(root).find(&shape) {
                Ok(Some(template)) => Ok((template, shape.key())),
                Ok(None) => Err(ColdReason::NotBuilt),
                Err(error) => {
                    tracing::warn!(%error, "template of no use");
                    Err(ColdReason::Unusable { detail: error.to_string() })
                }
            },
            (None, _) => Err(ColdReason::Declined),
            (_, Err(why)) => Err(why),
        };
        let (template, origin) = match found {
            Ok((template, key)) => (Some(Arc::new(template)), Origin::Template { key }),
            Err(why) => (None, Origin::Cold { why }),
        };
        record.origin = Some(origin);
        Self { template }
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
                    tracing::warn!(%failure, "template of no use; booting from the beginning");
                    if let Some(machine) = slot.take() {
                        machine.kill().await;
                    }
                    let why = ColdReason::Unusable { detail: failure.to_string() };
                    record.origin = Some(Origin::Cold { why });
                }
            }
        }
        boot::boot(config, None, record, slot).await
    }
}
