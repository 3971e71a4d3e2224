//! Runs a command in a microVM and prints what it said.
//!
//! usage: hello [IMAGE]

use std::io::Write;

use microsandbox::Sandbox;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // Lets this program run its own sandboxes: nothing else has to be installed for that.
    microsandbox::reexec::init();
    let image = std::env::args().nth(1).unwrap_or_else(|| "busybox".into());

    let sandbox = Sandbox::builder("hello").image(image).memory(256).replace().create().await?;
    let output = sandbox.shell("echo Hello from $(hostname), Linux $(uname -r)").await?;
    std::io::stdout().write_all(output.stdout_bytes())?;
    sandbox.stop().await?;

    // Its disk is still there and could be started again.
    Sandbox::remove("hello").await?;
    Ok(())
}
