//! What a guest sees of an image is what `umoci unpack` leaves on a disk.
//!
//! The image crate's own tests compare every attribute by other readers. Here the judge is the guest's kernel, through
//! the disk and the overlay that every sandbox gets.

use std::{
    fs,
    os::unix::fs::{MetadataExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{Sandbox, env, image::Image};

use crate::{MSB_TEST_IMAGES, trial};

/// Tells all that a shell can see of the tree it runs in: one line for each fact, sorted.
///
/// Sizes and link counts of directories are the file system's own affair.
const MANIFEST: &str = r#"
{
    find . -type d -exec stat -c 'directory %n %f %u %g %Y' {} +
    find . ! -type d -exec stat -c 'entry %n %f %u %g %Y links %h size %s device %t:%T' {} +
    find . -type l -exec sh -c 'echo "link $0 -> $(readlink "$0")"' {} \;
    find . -type f -exec sha256sum {} +
} | sort
"#;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("fidelity::a_guest_sees_what_umoci_unpacks", guest_sees)]
}

async fn guest_sees() -> Result<()> {
    if !fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        report_not_run();
        return Ok(());
    }
    let work = tempfile::tempdir()?;
    let rootfs = make_image(work.path())?;
    // The very program that the guest runs, so that both tell a fact the same way.
    let expected = Command::new(rootfs.join("bin/busybox"))
        .args(["sh", "-c", MANIFEST])
        .current_dir(rootfs.join("tree"))
        .env("PATH", rootfs.join("bin"))
        .output()?;
    ensure!(expected.status.success(), "{}", String::from_utf8_lossy(&expected.stderr));
    let expected = String::from_utf8(expected.stdout)?;
    ensure!(expected.lines().count() > 500, "the judge saw too little: {expected}");

    let layout = work.path().join("layout");
    Image::load(&layout, Some("fidelity"), Arc::new(|_| {})).await?;
    let sandbox = Sandbox::builder("fidelity").image("fidelity").memory(256).create().await?;
    let seen = sandbox.shell(format!("cd /tree && {MANIFEST}")).await?;
    sandbox.stop().await?;
    let seen = seen.stdout()?;
    let missing = |from: &str, of: &str| -> Vec<String> {
        of.lines().filter(|line| !from.contains(line)).map(ToOwned::to_owned).collect()
    };
    ensure!(
        seen == expected,
        "only in the guest: {:#?}\nonly from umoci: {:#?}",
        missing(&expected, &seen),
        missing(&seen, &expected)
    );
    Ok(())
}

/// Puts files of a layer into a directory.
type Furnish = fn(&Path) -> Result<()>;

/// The busybox image with two more layers as a layout in `work`; answers with its tree as umoci unpacks it.
fn make_image(work: &Path) -> Result<PathBuf> {
    let images = env::read(MSB_TEST_IMAGES).context("`prepare` has found the images")?;
    let busybox = Path::new(&images).join("busybox");
    let layout = work.join("layout");
    run("cp", &["-rL", text(&busybox)?, text(&layout)?])?;
    let image = format!("{}:latest", layout.display());
    let layers: [(&str, Furnish); 2] = [("first", furnish_first), ("second", furnish_second)];
    for (name, furnish) in layers {
        let root = work.join(name);
        fs::create_dir_all(root.join("tree"))?;
        furnish(&root.join("tree"))?;
        let tar = work.join(format!("{name}.tar"));
        run("tar", &["--format=pax", "-c", "-f", text(&tar)?, "-C", text(&root)?, "tree"])?;
        run("umoci", &["raw", "add-layer", "--image", &image, text(&tar)?])?;
    }
    let bundle = work.join("bundle");
    run("umoci", &["unpack", "--image", &image, text(&bundle)?])?;
    Ok(bundle.join("rootfs"))
}

fn furnish_first(tree: &Path) -> Result<()> {
    fs::create_dir(tree.join("many"))?;
    for index in 0..500 {
        fs::write(tree.join(format!("many/{index}")), index.to_string().repeat(index))?;
    }
    let numbers: Vec<u8> = (0..750_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(tree.join("large"), numbers)?;
    fs::hard_link(tree.join("large"), tree.join("large-too"))?;
    symlink("nowhere/at all", tree.join("link"))?;
    for [name, kind, major, minor] in [["null", "c", "1", "3"], ["disk", "b", "259", "300"]] {
        run("mknod", &[text(&tree.join(name))?, kind, major, minor])?;
    }
    run("mkfifo", &[text(&tree.join("pipe"))?])?;
    for (name, mode) in [("program", "6755"), ("removed", "644"), ("replaced", "644")] {
        fs::write(tree.join(name), name)?;
        run("chmod", &[mode, text(&tree.join(name))?])?;
    }
    fs::create_dir(tree.join("hidden"))?;
    fs::write(tree.join("hidden/below"), "x")?;
    let owned = tree.join("owned");
    fs::write(&owned, "x")?;
    chown(&owned, Some(70_000), Some(4_000_000_000))?;
    run("touch", &["-d", "1969-12-31 12:00:00 UTC", text(&owned)?])
}

/// Removes, replaces and hides.
fn furnish_second(tree: &Path) -> Result<()> {
    for directory in ["replaced", "hidden", "many"] {
        fs::create_dir(tree.join(directory))?;
    }
    for (name, content) in [
        (".wh.removed", ""),
        ("replaced/inner", "x"),
        ("hidden/.wh..wh..opq", ""),
        ("hidden/above", "x"),
        ("many/.wh.7", ""),
        ("many/8", "changed"),
    ] {
        fs::write(tree.join(name), content)?;
    }
    Ok(())
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("test paths are UTF-8")
}

#[expect(clippy::print_stderr, reason = "a test that was not run must be visible")]
fn report_not_run() {
    eprintln!("not run: making device nodes needs root");
}
