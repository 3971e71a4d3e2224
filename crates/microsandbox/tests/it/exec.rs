//! Commands: output, input, ends, and that nobody waits for anybody else.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{ExecEvent, MicrosandboxError, Sandbox};

use crate::{sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("exec::output_status_and_failures_are_told_apart", told_apart),
        trial("exec::input_of_any_length_comes_back_whole", input_comes_back),
        trial("exec::a_reader_that_stops_stops_only_its_own_command", stopped_reader),
        trial("exec::a_timeout_ends_every_descendant", timeout_ends_descendants),
        trial("exec::a_background_child_does_not_hold_up_the_end", background_child),
        trial("exec::definition_reaches_every_command", definition_reaches_commands),
    ]
}

async fn told_apart() -> Result<()> {
    let sandbox = sandbox("told-apart").create().await?;
    let output = sandbox.shell("echo out; echo err >&2; exit 7").await?;
    ensure!((output.stdout()?, output.stderr()?) == ("out\n".into(), "err\n".into()));
    ensure!(output.status().code == 7 && output.status().signal.is_none());
    let killed = sandbox.shell("kill -9 $$").await?.status();
    ensure!(killed.code == 137 && killed.signal == Some(9), "{killed:?}");
    let none: [&str; 0] = [];
    match sandbox.exec("no-such-command", none).await {
        Err(MicrosandboxError::ExecFailed(failed)) => ensure!(failed.shell_code() == 127),
        other => anyhow::bail!("{other:?}"),
    }
    match sandbox.exec("/etc/passwd", none).await {
        Err(MicrosandboxError::ExecFailed(failed)) => ensure!(failed.shell_code() == 126),
        other => anyhow::bail!("{other:?}"),
    }
    let bad_user = sandbox.exec_with("true", |options| options.user("nobody-here")).await;
    ensure!(matches!(bad_user, Err(MicrosandboxError::ExecFailed(_))), "{bad_user:?}");
    sandbox.stop().await?;
    Ok(())
}

async fn input_comes_back() -> Result<()> {
    let sandbox = sandbox("input").create().await?;
    let data: Vec<u8> = (0..5_000_000_u32).map(|i| (i % 251) as u8).collect();
    let output = sandbox.exec_with("cat", |options| options.stdin_bytes(data.clone())).await?;
    ensure!(
        output.stdout_bytes()[..] == data[..],
        "{} bytes came back",
        output.stdout_bytes().len()
    );
    // A command that does not read its input ends all the same.
    let output = sandbox.exec_with("true", |options| options.stdin_bytes(data)).await?;
    ensure!(output.status().success);
    sandbox.stop().await?;
    Ok(())
}

async fn stopped_reader() -> Result<()> {
    let sandbox = sandbox("stopped-reader").create().await?;
    let mut flood = sandbox.exec_stream("cat", ["/dev/zero"]).await?;
    ensure!(matches!(flood.recv().await, Some(ExecEvent::Started { .. })));
    ensure!(matches!(flood.recv().await, Some(ExecEvent::Stdout(_))));
    // Nobody takes the flood's output from here on.
    for _ in 0..5 {
        ensure!(sandbox.shell("echo answered").await?.stdout()? == "answered\n");
    }
    drop(flood);
    // Dropping it has killed it.
    let gone = "for i in $(seq 1 100); do pgrep -x cat >/dev/null || exit 0; done; exit 1";
    ensure!(sandbox.shell(gone).await?.status().success);
    sandbox.stop().await?;
    Ok(())
}

async fn timeout_ends_descendants() -> Result<()> {
    let sandbox = sandbox("timeout").create().await?;
    let began = Instant::now();
    let limit = Duration::from_secs(1);
    let script = "setsid sleep 1000 & sleep 1000";
    let timed_out = sandbox.shell_with(script, |options| options.timeout(limit)).await;
    ensure!(matches!(timed_out, Err(MicrosandboxError::ExecTimeout(_))), "{timed_out:?}");
    ensure!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
    ensure!(!sandbox.shell("pgrep -x sleep").await?.status().success, "a sleep is left");
    sandbox.stop().await?;
    Ok(())
}

async fn background_child() -> Result<()> {
    let sandbox = sandbox("background").create().await?;
    let began = Instant::now();
    let output = sandbox.shell("sleep 1000 & echo hi").await?;
    ensure!(output.stdout()? == "hi\n");
    ensure!(began.elapsed() < Duration::from_secs(20), "took {:?}", began.elapsed());
    sandbox.stop().await?;
    Ok(())
}

async fn definition_reaches_commands() -> Result<()> {
    let sandbox = sandbox("definition")
        .env("GREETING", "hello there")
        .workdir("/tmp")
        .hostname("somewhere")
        .create()
        .await?;
    let output = sandbox.shell("echo $GREETING; pwd; hostname; id -u; echo $HOME").await?;
    ensure!(output.stdout()? == "hello there\n/tmp\nsomewhere\n0\n/root\n", "{output:?}");
    let as_user = |sandbox: Sandbox| async move {
        sandbox.shell_with("id -u; id -g; echo $X", |o| o.user("1000:1001").env("X", "y")).await
    };
    ensure!(as_user(sandbox.clone()).await?.stdout()? == "1000\n1001\ny\n");
    sandbox.stop().await?;
    Ok(())
}
