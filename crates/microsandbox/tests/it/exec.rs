//! Commands: output, input, ends, and that nobody waits for anybody else.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use microsandbox::{EndReason, ExecEvent, MicrosandboxError, Sandbox};

use crate::{processes, sandbox, trial};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("exec::output_status_and_failures_are_told_apart", told_apart),
        trial("exec::input_of_any_length_comes_back_whole", input_comes_back),
        trial("exec::a_reader_that_stops_stops_only_its_own_command", stopped_reader),
        trial("exec::a_timeout_ends_every_descendant", timeout_ends_descendants),
        trial("exec::a_kill_ends_every_descendant", kill_ends_descendants),
        trial("exec::a_background_child_does_not_hold_up_the_end", background_child),
        trial("exec::the_end_of_the_sandbox_is_the_reason_told", reason_told),
        trial("exec::users_have_what_login_programs_expect", users),
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
    let deadline = Instant::now() + Duration::from_secs(20);
    while processes(&sandbox, "cat /dev/zero").await? > 0 {
        ensure!(Instant::now() < deadline, "the command is left");
    }
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
    ensure!(processes(&sandbox, "sleep 1000").await? == 0, "a sleep is left");
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

async fn reason_told() -> Result<()> {
    for ephemeral in [false, true] {
        let sandbox = sandbox("reason").ephemeral(ephemeral).create().await?;
        let mut command = sandbox.exec_stream("sleep", ["1000"]).await?;
        ensure!(matches!(command.recv().await, Some(ExecEvent::Started { .. })));
        sandbox.kill().await?;
        ensure!(command.recv().await.is_none(), "nothing follows");
        let told = command.wait().await;
        let reason = match told {
            Err(MicrosandboxError::SandboxEnded { reason, .. }) => reason,
            other => anyhow::bail!("{other:?}"),
        };
        ensure!(reason == EndReason::StopRequested, "{reason:?}");
        let late = sandbox.shell("true").await;
        ensure!(matches!(late, Err(MicrosandboxError::SandboxEnded { .. })), "{late:?}");
        if !ephemeral {
            Sandbox::remove("reason").await?;
        }
    }
    Ok(())
}

async fn users() -> Result<()> {
    let sandbox = sandbox("users").create().await?;
    let accounts = "echo 'app:x:1234:1234::/srv/app:/bin/ash' >> /etc/passwd; \
        printf 'app:x:1234:\\nshared:x:2000:root,app\\nother:x:2001:app\\n' >> /etc/group";
    ensure!(sandbox.shell(accounts).await?.status().success);
    let script =
        "id -u; id -g; id -G; echo $HOME $USER $LOGNAME $SHELL; echo $PATH; echo ${TERM-none}";
    let output = sandbox.shell_with(script, |options| options.user("app")).await?;
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = format!("1234\n1234\n1234 2000 2001\n/srv/app app app /bin/ash\n{path}\nnone\n");
    ensure!(output.stdout()? == expected, "{output:?}");
    for (user, expected) in [("4321", "4321 0 0\n"), ("app:shared", "1234 2000 2000\n")] {
        let script = "echo $(id -u) $(id -g) $(id -G)";
        let output = sandbox.shell_with(script, |options| options.user(user)).await?;
        ensure!(output.stdout()? == expected, "{user}: {output:?}");
    }
    sandbox.stop().await?;
    Ok(())
}

async fn kill_ends_descendants() -> Result<()> {
    let sandbox = sandbox("kill").create().await?;
    let script = "(setsid sleep 1000 &) ; setsid sleep 1000 & echo begun; sleep 1000";
    let mut command = sandbox.shell_stream(script).await?;
    while !matches!(command.recv().await, Some(ExecEvent::Stdout(_))) {}
    command.kill().await?;
    let status = command.wait().await?;
    ensure!(status.signal == Some(9) && status.code == 137, "{status:?}");
    ensure!(processes(&sandbox, "sleep 1000").await? == 0, "a sleep is left");
    sandbox.stop().await?;
    Ok(())
}
