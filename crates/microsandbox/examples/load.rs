//! Runs commands in a running sandbox over one connection, as many and as fast as it can, and
//! prints what each took as JSON: what `cargo xtask bench exec` and `soak exec` measure with.
//!
//! usage: load NAME trips COUNT LANES    seconds of each round trip of `true`
//!        load NAME output BYTES         seconds that many bytes take to the client
//!        load NAME input BYTES          seconds that many bytes take to the command
#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use microsandbox::{ExecEvent, Sandbox};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    microsandbox::reexec::init();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = words.first().context("usage: load NAME trips|output|input ...")?;
    let sandbox = Sandbox::get(name).await?.connect().await?;
    match words[1..] {
        ["trips", count, lanes] => trips(&sandbox, count.parse()?, lanes.parse()?).await,
        ["output", bytes] => output(&sandbox, bytes.parse()?).await,
        ["input", bytes] => input(&sandbox, bytes.parse()?).await,
        _ => bail!("usage: load NAME trips COUNT LANES | output BYTES | input BYTES"),
    }
}

async fn trips(sandbox: &Sandbox, count: usize, lanes: usize) -> Result<()> {
    let lanes = lanes.max(1);
    let lane = |number: usize| async move {
        let share = count / lanes + usize::from(number < count % lanes);
        let mut took = Vec::with_capacity(share);
        for _ in 0..share {
            let begun = Instant::now();
            let none: [&str; 0] = [];
            let ended = sandbox.exec("true", none).await?;
            ensure!(ended.status().success, "{ended:?}");
            took.push(begun.elapsed().as_secs_f64());
        }
        Ok(took)
    };
    let took = futures_util::future::try_join_all((0..lanes).map(lane)).await?.concat();
    println!("{}", serde_json::to_string(&took)?);
    Ok(())
}

async fn output(sandbox: &Sandbox, bytes: usize) -> Result<()> {
    // Zeros cost the guest least: what is measured is the way, not the producer.
    let count = format!("count={}", bytes >> 20);
    let begun = Instant::now();
    let mut command = sandbox.exec_stream("dd", ["if=/dev/zero", "bs=1M", count.as_str()]).await?;
    let mut came = 0;
    while let Some(event) = command.recv().await {
        if let ExecEvent::Stdout(piece) = event {
            ensure!(piece.iter().all(|byte| *byte == 0), "a byte was changed");
            came += piece.len();
        }
    }
    ensure!(command.wait().await?.success);
    ensure!(came == bytes >> 20 << 20, "{came} of {bytes} bytes came");
    println!("{}", begun.elapsed().as_secs_f64());
    Ok(())
}

async fn input(sandbox: &Sandbox, bytes: usize) -> Result<()> {
    let piece = vec![0; 256 << 10];
    let begun = Instant::now();
    let script = "cat > /dev/null; echo done";
    let mut command = sandbox.shell_stream_with(script, |options| options.stdin_pipe()).await?;
    let sink = command.take_stdin().context("it was asked for")?;
    let mut left = bytes;
    while left > 0 {
        let len = left.min(piece.len());
        sink.write(&piece[..len]).await?;
        left -= len;
    }
    sink.close().await?;
    let ended = command.collect().await?;
    ensure!(ended.stdout_bytes()[..] == *b"done\n", "{ended:?}");
    println!("{}", begun.elapsed().as_secs_f64());
    Ok(())
}
