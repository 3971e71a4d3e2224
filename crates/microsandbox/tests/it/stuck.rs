//! Commands that hang before they are programs: each of them alone.

use std::{future::Future, pin::pin, time::Duration};

use anyhow::{Result, bail, ensure};
use libtest_mimic::Trial;
use microsandbox::{
    ExecOptionsBuilder, ExecOutput, MicrosandboxError, MicrosandboxResult, Sandbox,
};

use crate::{sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("stuck::a_file_system_that_hangs_holds_up_only_who_waits_for_it", file_system),
        trial("stuck::accounts_that_cannot_be_read_hold_up_no_file_operation", accounts),
    ]
}

/// Mounts a file system whose daemon never answers, for as long as the command lives.
const HANG: &str = "mkdir /hung; exec 5<>/dev/fuse; \
    mount -t fuse -o fd=5,rootmode=40000,user_id=0,group_id=0 hung /hung && echo mounted && \
    exec sleep 1000";

type Change = fn(ExecOptionsBuilder) -> ExecOptionsBuilder;

/// Three ways to need it before `execve`.
const WAYS: [(&str, Change); 3] = [
    ("true", |options| options.cwd("/hung")),
    ("/hung/program", |options| options),
    ("program", |options| options.env("PATH", "/hung:/bin")),
];

async fn file_system() -> Result<()> {
    let sandbox = sandbox("stuck").create().await?;
    let mut mount = sandbox.shell_stream(HANG).await?;
    while let Some(event) = mount.recv().await {
        if matches!(event, microsandbox::ExecEvent::Stdout(_)) {
            break;
        }
    }
    for (program, change) in WAYS {
        others_go_on(&sandbox, sandbox.exec_with(program, change)).await?;
        let limit = Duration::from_millis(300);
        let timed = sandbox.exec_with(program, |options| change(options).timeout(limit)).await;
        ensure!(matches!(timed, Err(MicrosandboxError::ExecTimeout(_))), "{program}: {timed:?}");
    }
    none_is_left(&sandbox).await?;
    drop(mount);
    sandbox.stop().await?;
    Ok(())
}

async fn accounts() -> Result<()> {
    let sandbox = sandbox("stuck-accounts").create().await?;
    let moved = "mv /etc/passwd /etc/kept; mkfifo /etc/passwd";
    ensure!(sandbox.shell(moved).await?.status().success);
    let (none, fs): ([&str; 0], _) = ([], sandbox.fs());
    {
        let mut waiting = pin!(sandbox.exec("true", none));
        tokio::select! {
            biased;
            ended = &mut waiting => bail!("nobody has written the accounts: {ended:?}"),
            there = fs.exists("/etc/kept") => ensure!(there?),
        }
    }
    fs.rename("/etc/kept", "/etc/passwd").await?;
    ensure!(sandbox.shell("echo $HOME").await?.stdout()? == "/root\n");
    none_is_left(&sandbox).await?;
    sandbox.stop().await?;
    Ok(())
}

/// Sees that others run while `stuck` does not, then gives it up.
async fn others_go_on(
    sandbox: &Sandbox,
    stuck: impl Future<Output = MicrosandboxResult<ExecOutput>>,
) -> Result<()> {
    let mut stuck = pin!(stuck);
    for _ in 0..20 {
        tokio::select! {
            biased;
            ended = &mut stuck => bail!("nothing answers there: {ended:?}"),
            other = sandbox.shell("echo fine") => ensure!(other?.stdout()? == "fine\n"),
        }
    }
    Ok(())
}

/// Waits until no process is left that never became a program: such a one is called as the agent is.
async fn none_is_left(sandbox: &Sandbox) -> Result<()> {
    let wait =
        "for i in $(seq 500); do [ $(ps | grep -c '[/]init') = 1 ] && exit; done; ps; exit 1";
    let output = sandbox.shell(wait).await?;
    ensure!(output.status().success, "{output:?}");
    Ok(())
}
