//! Dependencies between our own crates: they point down, and there are no others.

use std::collections::BTreeSet;

use serde_json::Value;

use super::Fault;

/// Every edge there may be; a new one needs a decision record.
const EDGES: &[(&str, &[&str])] = &[
    (
        "microsandbox",
        &[
            "microsandbox-archive",
            "microsandbox-db",
            "microsandbox-image",
            "microsandbox-runtime",
            "microsandbox-snapshot",
        ],
    ),
    ("microsandbox-agent", &["microsandbox-archive", "microsandbox-fuzz", "microsandbox-protocol"]),
    ("microsandbox-archive", &[]),
    ("microsandbox-cli", &["microsandbox"]),
    ("microsandbox-db", &["microsandbox-migration"]),
    ("microsandbox-fuzz", &[]),
    ("microsandbox-image", &["microsandbox-fuzz"]),
    ("microsandbox-migration", &[]),
    ("microsandbox-network", &[]),
    ("microsandbox-protocol", &[]),
    (
        "microsandbox-runtime",
        &[
            "microsandbox-fuzz",
            "microsandbox-network",
            "microsandbox-protocol",
            "microsandbox-snapshot",
        ],
    ),
    ("microsandbox-snapshot", &["microsandbox-archive"]),
    ("xtask", &[]),
];

/// Packages whose errors end at a person; elsewhere errors are typed.
const ANYHOW: [&str; 3] = ["microsandbox-cli", "microsandbox-fuzz", "xtask"];

/// Compares what `cargo metadata` says with [`EDGES`], dependencies of tests included.
pub(super) fn check(metadata: &Value) -> Vec<Fault> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: BTreeSet<&str> =
        packages.iter().filter_map(|package| package["name"].as_str()).collect();
    packages.iter().flat_map(|package| check_package(package, &ours)).collect()
}

fn check_package(package: &Value, ours: &BTreeSet<&str>) -> Vec<Fault> {
    let name = package["name"].as_str().unwrap_or_default();
    let fault = |what| Fault { path: format!("package {name}"), line: None, what };
    let Some((_, allowed)) = EDGES.iter().find(|(from, _)| *from == name) else {
        return vec![fault(
            "is not in the list of crates: add it to xtask/src/tidy/edges.rs".into(),
        )];
    };
    let dependencies = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    dependencies
        .iter()
        .filter_map(|dependency| {
            let to = dependency["name"].as_str()?;
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if ours.contains(to) && !allowed.contains(&to) {
                return Some(fault(format!(
                    "depends on {to}, which is no edge of ARCHITECTURE.md: remove it, or write a \
                     decision record and add the edge"
                )));
            }
            (to == "anyhow" && !for_tests && !ANYHOW.contains(&name)).then(|| {
                fault("uses anyhow outside tests: a library has a typed error of its own".into())
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(package: &str, dependency: &str, kind: Option<&str>) -> usize {
        check(&json!({ "packages": [
            { "name": package, "dependencies": [{ "name": dependency, "kind": kind }] },
            { "name": "microsandbox-protocol", "dependencies": [] },
            { "name": "microsandbox-agent", "dependencies": [] },
        ] }))
        .len()
    }

    #[test]
    fn edge_that_is_listed_passes() {
        assert_eq!(faults("microsandbox-runtime", "microsandbox-protocol", None), 0);
        assert_eq!(faults("microsandbox-image", "serde", None), 0);
    }

    #[test]
    fn edge_that_is_not_listed_is_at_fault_in_tests_too() {
        assert_eq!(faults("microsandbox-image", "microsandbox-protocol", None), 1);
        assert_eq!(faults("microsandbox-runtime", "microsandbox-agent", Some("dev")), 1);
    }

    #[test]
    fn package_that_nobody_listed_is_at_fault() {
        assert_eq!(faults("microsandbox-surprise", "serde", None), 1);
    }

    #[test]
    fn anyhow_is_for_people_and_tests() {
        assert_eq!(faults("microsandbox-db", "anyhow", None), 1);
        assert_eq!(faults("microsandbox-db", "anyhow", Some("dev")), 0);
        assert_eq!(faults("microsandbox-cli", "anyhow", None), 0);
    }
}
