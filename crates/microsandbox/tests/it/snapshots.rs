//! Snapshots of disks: taken, restored, carried away, and damaged.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{
    MicrosandboxError, Sandbox, SizeExt, Snapshot, SnapshotLoadOptions, SnapshotSaveOptions, env,
};

use crate::{
    IMAGE, directory,
    lifecycle::{judge_ext4, kill_9, pid_in_record},
    sandbox, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("snapshots::a_disk_is_restored_twice_and_all_three_go_their_ways", restored_twice),
        trial("snapshots::what_cannot_be_is_refused_and_leaves_nothing", refused),
        trial("snapshots::a_disk_that_was_in_use_is_replayed", replayed),
        trial("snapshots::a_damaged_disk_is_never_restored", damaged),
        trial("snapshots::one_goes_away_and_comes_back_with_its_image", carried),
    ]
}

/// Stops a sandbox in which `/root/kept` holds its name.
async fn stopped(name: &str) -> Result<()> {
    let first = sandbox(name).create().await?;
    let script = format!("echo {name} > /root/kept; echo kept >> /etc/passwd; rm -r /var");
    ensure!(first.shell(script).await?.status().success);
    Ok(first.stop().await?)
}

/// Names in the store, hidden ones included.
pub(crate) fn snapshots_left() -> Vec<String> {
    let root = PathBuf::from(env::read(env::MSB_HOME).unwrap_or_default()).join("snapshots");
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

async fn restored_twice() -> Result<()> {
    stopped("origin").await?;
    let taken = Sandbox::get("origin").await?.snapshot("twice").await?;
    ensure!(Snapshot::get("twice")?.id() == taken.id());
    ensure!(taken.source_sandbox() == "origin" && taken.memory_mib() == 192);
    ensure!(taken.stored_bytes()? < taken.size_bytes() / 20, "{}", taken.stored_bytes()?);
    for name in ["twin-a", "twin-b"] {
        let restored =
            Sandbox::builder(name).from_snapshot("twice").memory(192).create_detached().await?;
        let script = "cat /root/kept; grep -c kept /etc/passwd; ls -d /var; hostname; echo $FROM";
        let found = restored.shell(script).await?.stdout()?;
        ensure!(found == format!("origin\n1\n{name}\n\n"), "{found}");
        restored.shell(format!("echo {name} > /root/kept")).await?;
        restored.stop().await?;
        judge_ext4(&directory(name).join("upper.ext4"))?;
    }
    taken.verify().await?;
    for name in ["origin", "twin-a", "twin-b"] {
        let again = Sandbox::start(name).await?;
        let found = again.shell("cat /root/kept").await?.stdout()?;
        ensure!(found == format!("{name}\n"), "{found}");
        again.stop().await?;
        Sandbox::remove(name).await?;
    }
    Snapshot::remove("twice").await?;
    ensure!(matches!(Snapshot::get("twice"), Err(MicrosandboxError::SnapshotNotFound(_))));
    Ok(())
}

async fn refused() -> Result<()> {
    let missing = Snapshot::builder("never").from_sandbox("nobody").create().await;
    ensure!(matches!(missing, Err(MicrosandboxError::SandboxNotFound(_))));
    let missing = Sandbox::builder("never").from_snapshot("never").create().await;
    ensure!(matches!(missing, Err(MicrosandboxError::SnapshotNotFound(_))));
    let running = sandbox("busy-one").create().await?;
    let handle = Sandbox::get("busy-one").await?;
    let refused = handle.snapshot("never").await;
    ensure!(matches!(refused, Err(MicrosandboxError::SnapshotSandboxRunning(_))), "{refused:?}");
    running.stop().await?;
    ensure!(matches!(handle.snapshot("../x").await, Err(MicrosandboxError::InvalidConfig(_))));
    let first = handle.snapshot("had").await?;
    let taken = handle.snapshot("had").await;
    ensure!(matches!(taken, Err(MicrosandboxError::SnapshotAlreadyExists(_))), "{taken:?}");
    let forced = Snapshot::builder("had").from_sandbox("busy-one").force().create().await?;
    ensure!(Snapshot::get("had")?.id() == forced.id() && forced.id() != first.id());
    let small = Sandbox::builder("never").from_snapshot("had").oci_upper_size(64).create().await;
    ensure!(matches!(small, Err(MicrosandboxError::InvalidConfig(_))), "{small:?}");
    let other = Sandbox::builder("never").image("busybox-other").from_snapshot("had");
    let layout = PathBuf::from(env::read("MSB_TEST_IMAGES").unwrap_or_default());
    let silent = std::sync::Arc::new(|_: microsandbox::PullProgress| {});
    let configured = layout.join("busybox-configured");
    microsandbox::image::Image::load(&configured, Some("busybox-other"), silent).await?;
    let mismatch = other.create().await;
    let Err(MicrosandboxError::SnapshotIntegrity(message)) = mismatch else {
        anyhow::bail!("{mismatch:?}");
    };
    ensure!(message.starts_with("snapshot image digest mismatch: manifest pinned sha256:"));
    ensure!(!directory("never").exists() && !snapshots_left().contains(&"never".to_owned()));
    let same = Sandbox::builder("same-image").image(IMAGE).from_snapshot("had").memory(192);
    let larger = same.oci_upper_size(5.gib()).create().await?;
    let blocks = larger.shell("df -k / | tail -1 | awk '{print $2}'").await?.stdout()?;
    ensure!(blocks.trim().parse::<u64>()? > 4_500_000, "{blocks}");
    larger.stop().await?;
    judge_ext4(&directory("same-image").join("upper.ext4"))?;
    Sandbox::remove("same-image").await?;
    Snapshot::remove("had").await?;
    Sandbox::remove("busy-one").await.map_err(Into::into)
}

/// The machine is killed while it writes; the journal of its disk is not empty then.
async fn replayed() -> Result<()> {
    let first = sandbox("torn").create().await?;
    ensure!(first.shell("echo synced > /root/kept; sync").await?.status().success);
    first.shell("cd /root; for i in $(seq 200); do mkdir d$i; done").await?;
    kill_9(&pid_in_record("torn", "vmm_pid")?)?;
    let handle = Sandbox::get("torn").await?;
    handle.wait_until_stopped().await?;
    let taken = handle.snapshot("torn").await?;
    let copy = tempfile::tempdir()?;
    let copied = copy.path().join("upper.ext4");
    let upper = taken.path().join("upper.ext4");
    let copying = Command::new("cp").arg("--sparse=always").args([&upper, &copied]).status()?;
    ensure!(copying.success());
    let replay = Command::new("e2fsck").arg("-fp").arg(&copied).output().context("run e2fsck")?;
    ensure!(replay.status.code() < Some(2), "{}", String::from_utf8_lossy(&replay.stdout));
    judge_ext4(&copied)?;
    let restored = Sandbox::builder("untorn").from_snapshot("torn").memory(192).create().await?;
    ensure!(restored.shell("cat /root/kept").await?.stdout()? == "synced\n");
    restored.stop().await?;
    judge_ext4(&directory("untorn").join("upper.ext4"))?;
    taken.verify().await?;
    for name in ["torn", "untorn"] {
        Sandbox::remove(name).await?;
    }
    Ok(Snapshot::remove("torn").await?)
}

async fn damaged() -> Result<()> {
    stopped("sound").await?;
    let taken = Sandbox::get("sound").await?.snapshot("unsound").await?;
    let upper = File::options().read(true).write(true).open(taken.path().join("upper.ext4"))?;
    let mut byte = [0];
    upper.read_exact_at(&mut byte, 1080)?;
    upper.write_all_at(&[byte[0] ^ 1], 1080)?;
    for attempt in [taken.verify().await, restore("from-unsound").await] {
        ensure!(matches!(attempt, Err(MicrosandboxError::SnapshotIntegrity(_))), "{attempt:?}");
    }
    upper.write_all_at(&byte, 1080)?;
    taken.verify().await?;
    upper.set_len(taken.size_bytes() - 4096)?;
    let attempt = restore("from-unsound").await;
    ensure!(matches!(attempt, Err(MicrosandboxError::SnapshotIntegrity(_))), "{attempt:?}");
    fs::write(taken.path().join("snapshot.json"), "{")?;
    let attempt = restore("from-unsound").await;
    ensure!(matches!(attempt, Err(MicrosandboxError::SnapshotIntegrity(_))), "{attempt:?}");
    ensure!(!directory("from-unsound").exists());
    Snapshot::remove("unsound").await?;
    let again = Sandbox::start("sound").await?;
    ensure!(again.shell("cat /root/kept").await?.stdout()? == "sound\n", "the source is unharmed");
    again.stop().await?;
    Ok(Sandbox::remove("sound").await?)
}

async fn restore(name: &str) -> microsandbox::MicrosandboxResult<()> {
    Sandbox::builder(name).from_snapshot("unsound").memory(192).create().await.map(drop)
}

async fn carried() -> Result<()> {
    stopped("traveller").await?;
    let taken = Sandbox::get("traveller").await?.snapshot("carried").await?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("carried.tar.zst");
    Snapshot::save("carried", &file, SnapshotSaveOptions::default().with_image()).await?;
    Snapshot::remove("carried").await?;
    let options = SnapshotLoadOptions::default().with_name("arrived");
    let arrived = Snapshot::load(&file, options).await?;
    ensure!(arrived.id() == taken.id() && arrived.name() == "arrived");
    let cut = fs::read(&file)?;
    let refused = Snapshot::load_from(
        std::io::Cursor::new(cut[..cut.len() / 2].to_vec()),
        Default::default(),
    );
    ensure!(refused.await.is_err());
    ensure!(!snapshots_left().iter().any(|name| name.starts_with('.')), "{:?}", snapshots_left());
    let restored =
        Sandbox::builder("arrival").from_snapshot("arrived").memory(192).create().await?;
    ensure!(restored.shell("cat /root/kept").await?.stdout()? == "traveller\n");
    restored.stop().await?;
    for name in ["arrival", "traveller"] {
        Sandbox::remove(name).await?;
    }
    Ok(Snapshot::remove("arrived").await?)
}
