//! Commands and files together: write, run, read back, copy a tree, leave a job behind.
//!
//! `cargo run --example files`
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use microsandbox::{ExecEvent, FsEntryKind, Sandbox};

#[tokio::main]
pub(crate) async fn main() -> anyhow::Result<()> {
    microsandbox::reexec::init();
    let sandbox = Sandbox::builder("files").image("busybox").memory(256).replace().create().await?;
    let fs = sandbox.fs();
    fs.mkdir("/srv/in").await?;
    fs.write("/srv/in/words", "three short words\n").await?;
    let output = sandbox.exec("wc", ["-w", "/srv/in/words"]).await?;
    println!("{}", output.stdout()?);

    let sink = fs.write_stream("/srv/in/numbers").await?;
    for number in 0..1000 {
        sink.write(format!("{number}\n")).await?;
    }
    sink.close().await?;
    let mut command = sandbox
        .exec_stream_with("sort", |options| {
            options.args(["-rn"]).stdin_pipe().env("LC_ALL", "C").cwd("/srv/in")
        })
        .await?;
    if let Some(stdin) = command.take_stdin() {
        stdin.write(fs.read("/srv/in/numbers").await?).await?;
        stdin.close().await?;
    }
    while let Some(event) = command.recv().await {
        if let ExecEvent::Stdout(bytes) = event {
            println!("{} sorted bytes", bytes.len());
        }
    }
    for entry in fs.list("/srv/in").await? {
        let kind = if entry.kind == FsEntryKind::Directory { "directory" } else { "file" };
        println!("{kind} {} of {} bytes", entry.path, entry.size);
    }
    let here = tempfile::tempdir()?;
    fs.copy_to_host("/srv/in", here.path().join("in")).await?;
    fs.copy_from_host(here.path().join("in"), "/srv/out").await?;
    let mut job = sandbox.exec_detached("ls", ["/srv/out"]).await?;
    println!("job {} ended with {}", job.id(), job.wait().await?.code);
    fs.remove_dir("/srv/out").await?;
    anyhow::ensure!(!fs.exists("/srv/out").await?);
    sandbox.stop().await?;
    Ok(())
}
