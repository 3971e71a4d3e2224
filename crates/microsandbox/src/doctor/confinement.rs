//! The layers of confinement that this host has.

use microsandbox_runtime::{Layer, confine};

use super::Check;

/// A sandbox runs without a layer, unless all are required.
pub(super) fn check() -> impl Iterator<Item = Check> {
    let host = confine::probe();
    Layer::ALL.into_iter().map(move |layer| match (host.lacks(layer), host.landlock_abi) {
        (Some((_, why)), _) => Check::warn(layer.name(), why, Some(remedy(layer).into())),
        (None, Some(abi)) if layer == Layer::Landlock => {
            Check::ok(layer.name(), format!("interface version {abi}"))
        }
        (None, _) => Check::ok(layer.name(), "available".into()),
    })
}

const fn remedy(layer: Layer) -> &'static str {
    match layer {
        Layer::Landlock => "boot with lsm=landlock,... on Linux 5.13 or later",
        Layer::Namespaces => {
            "let users make namespaces: sysctl user.max_user_namespaces, and what your \
             distribution has beside it (kernel.apparmor_restrict_unprivileged_userns)"
        }
        Layer::Seccomp => "use a kernel with CONFIG_SECCOMP_FILTER",
    }
}
