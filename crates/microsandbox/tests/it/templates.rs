//! Starts from templates: that they happen, that no two are alike, and that a bad template harms nobody.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{BootMode, ColdReason, Origin, Sandbox, SandboxBuilder, env};

use crate::{
    directory,
    lifecycle::{end_at_once, eventually, judge_ext4, processes_of},
    sandbox, trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("templates::the_second_start_goes_on_from_one", second_start),
        trial("templates::no_two_starts_are_alike", no_two_alike),
        trial("templates::a_damaged_one_is_replaced", damaged_is_replaced),
        trial("templates::another_shape_has_another", another_shape),
        trial("templates::eight_processors_go_on_in_one", eight_processors),
        trial("templates::a_machine_that_ends_at_once_loses_nothing", ended_at_once),
        trial("templates::a_known_image_starts_with_its_root_mounted", known_image),
        trial("templates::a_damaged_one_of_an_image_is_replaced", damaged_image),
        trial("templates::a_killed_build_is_taken_up_by_the_next", killed_build),
    ]
}

fn templates() -> PathBuf {
    PathBuf::from(env::read(env::MSB_HOME).unwrap_or_default()).join("templates")
}

/// A sandbox of a shape that only one test uses.
fn shaped(name: &str, memory_mib: u32) -> SandboxBuilder {
    sandbox(name).memory(memory_mib).boot(BootMode::Template)
}

async fn origin(sandbox: &Sandbox) -> Result<Origin> {
    let run = Sandbox::get(sandbox.name()).await?.last_run()?.context("it runs")?;
    run.origin.context("its origin is decided")
}

/// The template that a cold start of that shape has had built.
async fn built(name: &str, memory_mib: u32) -> Result<PathBuf> {
    let first = shaped(name, memory_mib).create().await?;
    let came = origin(&first).await?;
    ensure!(came == Origin::Cold { why: ColdReason::NotBuilt }, "{came:?}");
    first.kill().await?;
    Sandbox::remove(name).await?;
    wait_for_template(memory_mib, Of::Machine).await
}

/// What a template is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Machine,
    Image,
}

async fn wait_for_template(memory_mib: u32, of: Of) -> Result<PathBuf> {
    wait_for_another_template(memory_mib, of, None).await
}

async fn wait_for_another_template(
    memory_mib: u32,
    of: Of,
    known: Option<&Path>,
) -> Result<PathBuf> {
    let began = Instant::now();
    loop {
        if let Some(template) = template_of(memory_mib, of, known)? {
            return Ok(template);
        }
        let log = || fs::read_to_string(templates().join("build.log")).unwrap_or_default();
        ensure!(began.elapsed() < BUILD, "no template came: {}", log());
        // A builder has only the processor time that nobody else wants.
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Longest that a build takes before it gives up, and then some.
const BUILD: Duration = Duration::from_secs(150);

const LOOK_AGAIN: Duration = Duration::from_millis(20);

fn template_of(memory_mib: u32, of: Of, known: Option<&Path>) -> Result<Option<PathBuf>> {
    let size = format!("\"{memory_mib}M\"");
    let is_new = |path: &Path| path.is_dir() && Some(path) != known;
    for entry in fs::read_dir(templates())?.flatten().filter(|entry| is_new(&entry.path())) {
        let manifest = fs::read_to_string(entry.path().join("checkpoint.json"));
        let done = entry.path().extension().is_none();
        let kind = |manifest: &str| match manifest.contains("\"root\"") {
            true => Of::Image,
            false => Of::Machine,
        };
        if done && manifest.is_ok_and(|text| text.contains(&size) && kind(&text) == of) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

async fn second_start() -> Result<()> {
    let template = built("first", 193).await?;
    let second = shaped("second", 193).create().await?;
    let key = template.file_name().context("it has a name")?.to_string_lossy().into_owned();
    let came = origin(&second).await?;
    ensure!(came == Origin::Template { key }, "{came:?}");
    ensure!(second.shell("echo hello > /f; cat /f").await?.stdout()? == "hello\n");
    let clocks = "date +%s; cut -d. -f1 /proc/uptime";
    let now = second.shell(clocks).await?.stdout()?;
    let mut numbers = now.lines().map(str::parse::<u64>);
    let here = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let there = numbers.next().context("a date")??;
    ensure!(here.abs_diff(there) <= 5, "it is {there} in the guest and {here} here");
    second.stop().await?;
    judge_ext4(&directory("second").join("upper.ext4"))?;
    // A stopped one starts from the template, too, with what it had written.
    let again = Sandbox::start("second").await?;
    ensure!(matches!(origin(&again).await?, Origin::Template { .. }));
    ensure!(again.shell("cat /f").await?.stdout()? == "hello\n");
    again.kill().await?;
    Sandbox::remove("second").await?;
    // What asks for a cold boot gets one.
    let cold = shaped("cold", 193).boot(BootMode::Cold).create().await?;
    ensure!(origin(&cold).await? == Origin::Cold { why: ColdReason::Declined });
    cold.kill().await?;
    Ok(())
}

/// Lanes that start at once, and starts in each.
const LANES: usize = 4;
const TURNS: usize = 5;

async fn no_two_alike() -> Result<()> {
    built("alike", 194).await?;
    // From the machine's template, until that of the image is there.
    let mut all = starts("alike").await?;
    wait_for_template(194, Of::Image).await?;
    for (identity, came) in starts("alike-image").await? {
        ensure!(matches!(came, Origin::ImageTemplate { .. }), "{came:?}");
        all.push((identity, came));
    }
    ensure!(all.len() == 2 * LANES * TURNS);
    let all: Vec<_> = all.into_iter().map(|(identity, _)| identity).collect();
    for (part, name) in ["randomness", "machine id", "boot id", "host name"].iter().enumerate() {
        let values: BTreeSet<_> = all.iter().map(|identity| &identity[part]).collect();
        ensure!(values.len() == all.len(), "the same {name} twice: {values:?}");
    }
    Ok(())
}

async fn starts(name: &'static str) -> Result<Vec<(Vec<String>, Origin)>> {
    let lanes = (0..LANES).map(|lane| {
        tokio::spawn(async move {
            let mut seen = Vec::new();
            for turn in 0..TURNS {
                seen.push(identity(&format!("{name}-{lane}-{turn}")).await?);
            }
            anyhow::Ok(seen)
        })
    });
    let mut all = Vec::new();
    for lane in lanes.collect::<Vec<_>>() {
        all.extend(lane.await??);
    }
    Ok(all)
}

/// What tells a sandbox from its siblings, its first random bytes read before anything else.
async fn identity(name: &str) -> Result<(Vec<String>, Origin)> {
    let sandbox = shaped(name, 194).ephemeral(true).create().await?;
    let came = origin(&sandbox).await?;
    ensure!(!matches!(came, Origin::Cold { .. }), "{came:?}");
    let script = "head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n'; echo; \
                  cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname";
    let told = sandbox.shell(script).await?.stdout()?;
    let told: Vec<String> = told.lines().map(str::to_owned).collect();
    ensure!(told.len() == 4 && told[0].len() == 64, "{told:?}");
    sandbox.kill().await?;
    Ok((told, came))
}

fn flip_a_byte(file: &Path) -> Result<()> {
    let mut file = File::options().read(true).write(true).open(file)?;
    let middle = SeekFrom::Start(file.metadata()?.len() / 2);
    let mut byte = [0];
    file.seek(middle)?;
    file.read_exact(&mut byte)?;
    file.seek(middle)?;
    file.write_all(&[byte[0] ^ 1])?;
    Ok(())
}

async fn damaged_is_replaced() -> Result<()> {
    built("whole", 195).await?;
    for (turn, file) in ["memory", "devices", "checkpoint.json"].into_iter().enumerate() {
        let template = wait_for_template(195, Of::Machine).await?;
        match file {
            // A flipped bit in a name is another name.
            "checkpoint.json" => fs::write(template.join(file), "{")?,
            _ => flip_a_byte(&template.join(file))?,
        }
        let name = format!("damaged-{turn}");
        let sandbox = shaped(&name, 195).create().await?;
        let came = origin(&sandbox).await?;
        let unusable = matches!(came, Origin::Cold { why: ColdReason::Unusable { .. } });
        ensure!(unusable, "{file}: {came:?}");
        ensure!(sandbox.shell("echo alive").await?.stdout()? == "alive\n");
        sandbox.kill().await?;
    }
    wait_for_template(195, Of::Machine).await?;
    let sandbox = shaped("repaired", 195).create().await?;
    ensure!(!matches!(origin(&sandbox).await?, Origin::Cold { .. }));
    sandbox.kill().await?;
    Ok(())
}

async fn another_shape() -> Result<()> {
    let one = built("one-cpu", 196).await?;
    let more = shaped("three-cpus", 196).cpus(3).create().await?;
    ensure!(origin(&more).await? == Origin::Cold { why: ColdReason::NotBuilt });
    more.kill().await?;
    wait_for_another_template(196, Of::Machine, Some(&one)).await?;
    let again = shaped("three-again", 196).cpus(3).ephemeral(true).create().await?;
    let came = origin(&again).await?;
    ensure!(matches!(came, Origin::Template { .. }), "{came:?}");
    let count = again.shell("nproc").await?.stdout()?;
    ensure!(count == "3\n", "{count}");
    again.kill().await?;
    Ok(())
}

async fn eight_processors() -> Result<()> {
    let eight = |name| shaped(name, 200).cpus(8).ephemeral(true);
    eight("eight-first").create().await?.kill().await?;
    wait_for_template(200, Of::Machine).await?;
    let again = eight("eight-again").create().await?;
    let came = origin(&again).await?;
    ensure!(matches!(came, Origin::Template { .. }), "{came:?}");
    // Each says on which processor it was (`proc_pid_stat(5)`) when it had counted.
    let count = "i=0; while [ $i -lt 5000 ]; do i=$((i+1)); done; cut -d' ' -f39 /proc/$$/stat";
    let script = format!(
        "nproc; for mask in 1 2 4 8 10 20 40 80; do taskset $mask sh -c '{}' & done; wait",
        count.replace('\'', "'\\''")
    );
    let told = again.shell(script).await?.stdout()?;
    let (count, processors) = told.split_once('\n').context("a count")?;
    let processors: BTreeSet<&str> = processors.lines().collect();
    ensure!(count == "8" && processors == BTreeSet::from(EIGHT), "{told}");
    again.kill().await?;
    Ok(())
}

const EIGHT: [&str; 8] = ["0", "1", "2", "3", "4", "5", "6", "7"];

async fn ended_at_once() -> Result<()> {
    built("brief", 201).await?;
    end_at_once("brief", async |name| {
        let sandbox = shaped(name, 201).create().await?;
        let came = origin(&sandbox).await?;
        ensure!(!matches!(came, Origin::Cold { .. }), "{came:?}");
        Ok(sandbox)
    })
    .await
}

/// Has the template of the image built, and gives its folder.
async fn image_built(name: &str, memory_mib: u32) -> Result<PathBuf> {
    built(&format!("{name}-first"), memory_mib).await?;
    let second = shaped(&format!("{name}-second"), memory_mib).ephemeral(true).create().await?;
    let came = origin(&second).await?;
    ensure!(matches!(came, Origin::Template { .. }), "{came:?}");
    second.kill().await?;
    wait_for_template(memory_mib, Of::Image).await
}

async fn known_image() -> Result<()> {
    image_built("known", 198).await?;
    let mut seen = BTreeSet::new();
    let mut running = Vec::new();
    for name in ["known-a", "known-b"] {
        let sandbox = shaped(name, 198).env("WHO", name).workdir("/made/here").create().await?;
        let came = origin(&sandbox).await?;
        ensure!(matches!(came, Origin::ImageTemplate { .. }), "{came:?}");
        let script = "hostname; cat /etc/hostname; echo $WHO; pwd; cat /etc/machine-id \\
                      /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | od -An -tx1";
        let told = sandbox.shell(script).await?.stdout()?;
        let told: Vec<&str> = told.lines().collect();
        ensure!(told[..4] == [name, name, name, "/made/here"], "{told:?}");
        for identity in &told[4..] {
            ensure!(seen.insert((*identity).to_owned()), "{identity} twice");
        }
        ensure!(sandbox.shell("echo kept > /f && sync").await?.status().success);
        running.push(sandbox);
    }
    // Power loss and an orderly end, both right after a restore.
    let vmm = crate::lifecycle::pid_in_record("known-a", "vmm_pid")?;
    ensure!(Command::new("kill").args(["-9", &vmm]).status()?.success());
    eventually("the end", async || Ok(!Sandbox::get("known-a").await?.status().is_alive())).await?;
    let upper = directory("known-a").join("upper.ext4");
    let replayed = Command::new("e2fsck").arg("-fp").arg(&upper).output()?;
    ensure!(replayed.status.code() < Some(4), "{}", String::from_utf8_lossy(&replayed.stdout));
    judge_ext4(&upper)?;
    running[1].stop().await?;
    judge_ext4(&directory("known-b").join("upper.ext4"))?;
    for name in ["known-a", "known-b"] {
        let left: Vec<_> =
            fs::read_dir(directory(name))?.flatten().map(|e| e.file_name()).collect();
        let strays = left.iter().filter(|name| name.to_string_lossy().starts_with("upper."));
        ensure!(strays.count() == 1, "{left:?}");
        // A disk that was used has no template; that of the machine serves.
        let again = Sandbox::start(name).await?;
        ensure!(matches!(origin(&again).await?, Origin::Template { .. }));
        ensure!(again.shell("cat /f").await?.stdout()? == "kept\n");
        again.kill().await?;
    }
    Ok(())
}

async fn damaged_image() -> Result<()> {
    image_built("image", 199).await?;
    for (turn, file) in ["memory", "upper.ext4"].into_iter().enumerate() {
        let template = wait_for_template(199, Of::Image).await?;
        match file {
            "memory" => flip_a_byte(&template.join(file))?,
            // The first block has the superblock, which is never a hole.
            _ => File::options().write(true).open(template.join(file))?.write_all(b"damaged")?,
        }
        let sandbox = shaped(&format!("image-{turn}"), 199).create().await?;
        let came = origin(&sandbox).await?;
        ensure!(matches!(came, Origin::Template { .. }), "{file}: {came:?}");
        ensure!(sandbox.shell("echo alive").await?.stdout()? == "alive\n");
        ensure!(!template.exists(), "{file}: it was kept");
        sandbox.kill().await?;
        // The next start gets the disk ready for another.
        let next = shaped(&format!("image-next-{turn}"), 199).create().await?;
        next.kill().await?;
    }
    wait_for_template(199, Of::Image).await?;
    Ok(())
}

async fn killed_build() -> Result<()> {
    let first = shaped("builds", 197).create().await?;
    first.kill().await?;
    let mut key = String::new();
    eventually("a build", async || {
        key = key_being_built(197)?.unwrap_or_default();
        Ok(!key.is_empty())
    })
    .await?;
    for pid in processes_of(&key)? {
        let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if name.starts_with("msb-builder") {
            ensure!(Command::new("kill").args(["-9", &pid.to_string()]).status()?.success());
        }
    }
    eventually("its machine is gone", async || Ok(processes_of(&key)?.is_empty())).await?;
    let half_made = templates().join(format!("{key}.new"));
    ensure!(half_made.exists() && template_of(197, Of::Machine, None)?.is_none());
    built("builds-again", 197).await?;
    ensure!(!half_made.exists());
    Ok(())
}

/// The key of the template that a machine of that size is being built for.
fn key_being_built(memory_mib: u32) -> Result<Option<String>> {
    let size = format!("size={memory_mib}M");
    for entry in fs::read_dir("/proc")?.flatten() {
        let command_line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command_line = String::from_utf8_lossy(&command_line);
        if command_line.contains(&size)
            && let Some((before, _)) = command_line.split_once(".new/")
        {
            return Ok(before.rsplit('/').next().map(str::to_owned));
        }
    }
    Ok(None)
}
