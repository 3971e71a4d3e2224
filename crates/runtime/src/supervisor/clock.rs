//! The guest's wall clock, set again when it may be wrong.
//!
//! A guest counts time by itself from the boot on. It cannot see that the host's clock was set, that
//! the host slept, or that its own processors stood still: whoever sees one of these sends the time.
//! Nothing ticks: the kernel wakes who waits here.

use std::{
    io,
    os::fd::OwnedFd,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use microsandbox_protocol::{Message, SetClock, Timestamp};
use nix::{
    libc,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{link::FrameSender, sys::watch_readable};

/// Further away than any clock goes; the timer is there to be cancelled. Year 3000.
const NEVER: Duration = Duration::from_secs(32_503_680_000);

/// Wakes when the host's wall clock has jumped, or this process was held still for a while.
#[derive(Debug)]
pub(crate) struct ClockWatch {
    timer: TimerFd,
    /// The same timer, in the event loop.
    cancelled: AsyncFd<OwnedFd>,
    continued: Signal,
}

impl ClockWatch {
    pub(crate) fn new() -> io::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_REALTIME, flags)?;
        arm(&timer)?;
        let cancelled = watch_readable(rustix::io::dup(&timer)?)?;
        // After SIGSTOP or a freezer, both of which may have held the VMM, too.
        let continued = signal(SignalKind::from_raw(libc::SIGCONT))?;
        Ok(Self { timer, cancelled, continued })
    }

    /// Returns when the guest's clock should be set.
    ///
    /// Cancel safe.
    pub(crate) async fn jumped(&mut self) {
        tokio::select! {
            ready = self.cancelled.readable() => {
                if let Ok(mut ready) = ready {
                    ready.clear_ready();
                }
                // Reading would say ECANCELED: the clock was set, or the host woke from its sleep
                // (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET). Arming again makes the next one seen.
                if let Err(error) = arm(&self.timer) {
                    tracing::warn!(%error, "the host's clock is not watched any more");
                }
            }
            _ = self.continued.recv() => {}
        }
    }
}

fn arm(timer: &TimerFd) -> io::Result<()> {
    let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME | TimerSetTimeFlags::TFD_TIMER_CANCEL_ON_SET;
    Ok(timer.set(Expiration::OneShot(TimeSpec::from_duration(NEVER)), flags)?)
}

/// Has the agent set the guest's wall clock to this moment. One that does not know how leaves it.
pub(super) fn set_guest_clock(agent: &FrameSender) {
    agent.send(SetClock { wall_clock: now() }.to_frame(0));
}

/// The host's wall clock.
pub(super) fn now() -> Timestamp {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: now.subsec_nanos(),
    }
}
