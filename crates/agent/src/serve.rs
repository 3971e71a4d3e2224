//! The exec engine in an ordinary process: standard input is a socket with a host at its other end.
//!
//! The conversation is that of a guest, but nothing of the machine is touched: `Bootstrap` gives the
//! defaults for commands, its disks, names and clock are ignored.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use microsandbox_protocol::{BootTimings, Stopped};

use crate::error::Error;
use crate::init::{now_us, ready};
use crate::port::{Absence, Handshake, Start, send_last};
use crate::run::{self, End, Scope, Setup};

/// Serves until the host shuts it down or goes away.
///
/// # Errors
/// Why it could not go on.
pub(crate) fn serve() -> Result<(), Error> {
    let begun = now_us();
    let agent = File::open("/proc/self/exe").map_err(Error::Runtime)?;
    let null = File::options().read(true).write(true).open("/dev/null").map_err(Error::Runtime)?;
    let port = io::stdin().as_fd().try_clone_to_owned().map_err(Error::Runtime)?;
    let mut handshake = Handshake::new(port, Absence::Final)?;
    handshake.greet()?;
    let Start::Boot(bootstrap) = handshake.start()? else { return Ok(()) };
    let (port, decoder) = handshake.into_parts();
    let last = port.as_fd().try_clone_to_owned().map_err(Error::Runtime)?;
    let setup = Setup {
        port,
        decoder,
        defaults: bootstrap.defaults,
        cgroups: None,
        agent,
        null,
        scope: Scope::Commands,
        identity: None,
    };
    let timings = BootTimings { init_us: begun, ..BootTimings::default() };
    match run::run(setup, move || ready(timings))? {
        End::Shutdown => send_last(last, &Stopped {}),
        End::HostGone => Ok(()),
    }
}
