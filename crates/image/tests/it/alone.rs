//! The crate is used alone: what it depends on is none of ours, and no database.

use anyhow::Result;

use crate::tools::run;

#[test]
fn no_crate_of_ours_and_no_database_comes_along() -> Result<()> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let edges = ["tree", "--offline", "--edges", "normal,build", "--prefix", "none"];
    let tree = run(env!("CARGO"), &[&edges[..], &["--manifest-path", manifest]].concat())?;
    let mut names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    names.dedup();
    assert!(names.contains(&"reqwest") && names.contains(&"erofs-rs"), "{names:?}");
    let unwanted = ["sql", "sea-orm", "redb", "sled", "rocksdb", "lmdb"];
    let odd: Vec<&&str> = names
        .iter()
        .filter(|name| {
            let is_ours = name.starts_with("microsandbox") && **name != "microsandbox-image";
            is_ours || unwanted.iter().any(|part| name.contains(part))
        })
        .collect();
    assert!(odd.is_empty(), "{odd:?}");
    Ok(())
}
