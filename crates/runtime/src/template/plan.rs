//! The launcher's part in templates: it says beforehand what shape the machine has, and sees afterwards
//! that there is a template for the next.

use super::{BuildOrder, Templates, build};
use crate::{
    LaunchConfig, Program,
    checkpoint::{FileDigests, Shape, shape_of},
    record::{ColdReason, Origin},
    supervisor::vm_spec,
};

/// The shape of a machine, or why it has none. Reads the guest's and the VMM's files, once.
pub(crate) fn shape(config: &LaunchConfig) -> Result<Shape, ColdReason> {
    if config.templates.is_none() {
        return Err(ColdReason::Declined);
    }
    let mut digests = FileDigests::open(&config.digests);
    match shape_of(&config.vmm, &vm_spec(config), &mut digests) {
        Ok(Some(shape)) => Ok(shape),
        Ok(None) => Err(ColdReason::Driver),
        Err(error) => Err(ColdReason::Unusable { detail: error.to_string() }),
    }
}

/// Has a template built after a cold boot that could have used one, in place of one that was of no use.
/// Waits for nothing.
pub(crate) fn provide_for_the_next(
    program: &Program,
    config: &LaunchConfig,
    shape: Result<Shape, ColdReason>,
    origin: Option<&Origin>,
) {
    let (Some(root), Ok(shape)) = (&config.templates, shape) else { return };
    let templates = Templates::new(root);
    match origin {
        Some(Origin::Cold { why: ColdReason::Unusable { .. } }) => templates.retire(&shape),
        Some(Origin::Cold { .. }) => {}
        _ => return,
    }
    if !templates.wants(&shape) {
        return;
    }
    let order = BuildOrder {
        shape,
        templates: root.clone(),
        vmm: config.vmm.clone(),
        spec: vm_spec(config),
        confinement: config.confinement.clone(),
        log: config.log.clone(),
    };
    if let Err(error) = build::start(program, &order) {
        tracing::warn!(%error, "could not have a template built");
    }
}
