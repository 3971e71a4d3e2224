//! Detached jobs: they outlive who started them, and tell what they did.

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox::{JobEvent, JobHandle, JobOutputMode, JobState, MicrosandboxError, Sandbox};

use crate::{sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("jobs::a_job_outlives_who_started_it_and_tells_its_end", outlives),
        trial("jobs::output_beyond_the_record_is_told_as_a_gap", gap),
        trial("jobs::a_job_is_signalled_killed_and_removed", signalled),
        trial("jobs::a_job_has_limits_and_tells_what_it_used", limited),
        trial("jobs::a_job_that_cannot_start_is_told_and_not_kept", cannot_start),
    ]
}

/// All that a job wrote, and how many bytes of it are missing.
async fn collect(job: &JobHandle, mode: JobOutputMode) -> Result<(Vec<u8>, Vec<u8>, u64)> {
    let (mut stdout, mut stderr, mut missing) = (Vec::new(), Vec::new(), 0);
    let mut stream = job.output(mode).await?;
    while let Some(event) = stream.recv().await? {
        match event {
            JobEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            JobEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            JobEvent::Gap { bytes } => missing += bytes,
            other => bail!("{other:?}"),
        }
    }
    Ok((stdout, stderr, missing))
}

async fn outlives() -> Result<()> {
    let sandbox = sandbox("outlives").create().await?;
    // Another connection starts it and goes.
    let first = Sandbox::get("outlives").await?.connect().await?;
    let script = "echo began; echo err >&2; until [ -e /root/go ]; do usleep 20000; done; exit 7";
    let job = first.exec_detached("sh", ["-c", script]).await?;
    let id = job.id();
    drop((job, first));
    let mut job = sandbox.job(id).await?;
    ensure!(job.state() == JobState::Running && job.command() == ["sh", "-c", script]);
    let mut watched = job.output(JobOutputMode::Follow).await?;
    ensure!(matches!(watched.recv().await?, Some(JobEvent::Stdout(_) | JobEvent::Stderr(_))));
    drop(watched);
    ensure!(sandbox.jobs().await?.len() == 1);
    let running = job.remove().await;
    ensure!(matches!(running, Err(MicrosandboxError::JobRunning(found)) if found == id));
    sandbox.fs().write("/root/go", "").await?;
    ensure!(job.wait().await?.code == 7);
    let kept = collect(&job, JobOutputMode::Kept).await?;
    ensure!(kept == (b"began\n".to_vec(), b"err\n".to_vec(), 0), "{kept:?}");
    ensure!(job.output_bytes() == (10, 0));
    job.remove().await?;
    let gone = sandbox.job(id).await;
    ensure!(matches!(gone, Err(MicrosandboxError::JobNotFound(found)) if found == id), "{gone:?}");
    let missing = sandbox.exec_detached("no-such-command", [] as [&str; 0]).await;
    ensure!(matches!(missing, Err(MicrosandboxError::ExecFailed(_))), "{missing:?}");
    sandbox.stop().await?;
    Ok(())
}

async fn gap() -> Result<()> {
    let sandbox = sandbox("gap").create().await?;
    let script = "head -c 5000000 /dev/zero; echo the end";
    let mut job = sandbox.exec_detached("sh", ["-c", script]).await?;
    ensure!(job.wait().await?.success);
    let (stdout, _, missing) = collect(&job, JobOutputMode::Kept).await?;
    ensure!(stdout.ends_with(b"\0the end\n"), "{} bytes", stdout.len());
    ensure!(stdout.len() as u64 + missing == 5_000_008, "{missing} and {}", stdout.len());
    ensure!((900_000..=1 << 20).contains(&stdout.len()), "{}", stdout.len());
    sandbox.stop().await?;
    Ok(())
}

async fn signalled() -> Result<()> {
    const SIGTERM: i32 = 15;
    let sandbox = sandbox("signalled").create().await?;
    let mut polite = sandbox.exec_detached("sleep", ["1000"]).await?;
    polite.signal(SIGTERM).await?;
    ensure!(polite.wait().await?.signal == Some(SIGTERM));
    let script = "trap '' TERM; setsid sleep 1000 & sleep 1000";
    let mut stubborn = sandbox.exec_detached("sh", ["-c", script]).await?;
    stubborn.kill().await?;
    ensure!(stubborn.wait().await?.signal == Some(9));
    let none_left = "for i in $(seq 500); do ps | grep -q '[s]leep 1000' || exit 0; done; exit 1";
    ensure!(sandbox.shell(none_left).await?.status().success, "a descendant is left");
    let ids: Vec<u64> = sandbox.jobs().await?.iter().map(JobHandle::id).collect();
    ensure!(ids == [1, 2], "{ids:?}");
    sandbox.stop().await?;
    Ok(())
}

async fn limited() -> Result<()> {
    let sandbox = sandbox("limited-job").create().await?;
    let hold = |bytes: &str| {
        ["if=/dev/zero", "of=/dev/null", "count=1", &format!("bs={bytes}")].map(str::to_owned)
    };
    let mut hog = sandbox
        .exec_detached_with("dd", |options| options.args(hold("48M")).memory_limit(16))
        .await?;
    let status = hog.wait().await?;
    ensure!(status.out_of_memory && status.memory_limit_bytes == Some(16 << 20), "{status:?}");
    let job = sandbox.job(hog.id()).await?;
    ensure!(job.limits().memory_bytes == Some(16 << 20), "{job:?}");
    let busy = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000";
    let mut busy = sandbox.exec_detached("sh", ["-c", busy]).await?;
    ensure!(matches!(
        busy.output(JobOutputMode::Follow).await?.recv().await?,
        Some(JobEvent::Stdout(_))
    ));
    busy.refresh().await?;
    let usage = busy.usage();
    ensure!(usage.user_us > 0 && usage.peak_memory_bytes > 100_000, "{usage:?}");
    ensure!(busy.state() == JobState::Running && !busy.has_terminal(), "{busy:?}");
    sandbox.stop().await?;
    Ok(())
}

async fn cannot_start() -> Result<()> {
    let sandbox = sandbox("no-job").create().await?;
    let none: [&str; 0] = [];
    let refused = sandbox.exec_detached("no-such-program", none).await;
    ensure!(matches!(refused, Err(MicrosandboxError::ExecFailed(_))), "{refused:?}");
    ensure!(sandbox.jobs().await?.is_empty());
    sandbox.stop().await?;
    Ok(())
}
