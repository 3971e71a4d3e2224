//! When a sandbox ends without being told to stop: a time that is up, idleness, or the end of what was
//! under way when it was told to drain. Nothing ticks: there is one deadline.

use std::time::Duration;

use tokio::time::Instant;

use crate::EndReason;

/// Pause between two looks at whether a sandbox that drains still has something under way.
const DRAIN_PAUSE: Duration = Duration::from_millis(250);

/// The times after which a sandbox ends by itself.
#[derive(Debug)]
pub(super) struct Limits {
    idle_timeout: Option<Duration>,
    idle_since: Option<Instant>,
    latest: Option<Instant>,
    /// What was left of the longest time when the clock was stopped.
    left: Option<Duration>,
    draining: bool,
}

impl Limits {
    /// The clock starts now. A time beyond what the clock can say is none.
    pub(super) fn new(idle_timeout: Option<Duration>, max_duration: Option<Duration>) -> Self {
        let latest = max_duration.and_then(|time| Instant::now().checked_add(time));
        Self { idle_timeout, idle_since: None, latest, left: None, draining: false }
    }

    /// From now on idleness ends the sandbox, on request.
    pub(super) fn drain(&mut self) {
        self.draining = true;
        self.idle_timeout = Some(DRAIN_PAUSE);
    }

    /// Stops the clock.
    pub(super) fn suspend(&mut self) {
        self.idle_since = None;
        if let Some(latest) = self.latest.take() {
            self.left = Some(latest.saturating_duration_since(Instant::now()));
        }
    }

    /// Lets the clock go on.
    pub(super) fn go_on(&mut self) {
        self.latest = self.latest.or_else(|| Instant::now().checked_add(self.left.take()?));
    }

    /// Takes note of whether anything is under way.
    pub(super) fn observe(&mut self, idle: bool) {
        match (idle, self.idle_since) {
            (true, None) => self.idle_since = Some(Instant::now()),
            (true, Some(_)) => {}
            (false, _) => self.idle_since = None,
        }
    }

    fn idle_until(&self) -> Option<Instant> {
        self.idle_since?.checked_add(self.idle_timeout?)
    }

    /// When to look again; none: never.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.idle_until(), self.latest].into_iter().flatten().min()
    }

    /// Whether it was idleness that made the deadline.
    pub(super) fn is_idleness(&self) -> bool {
        match (self.idle_until(), self.latest) {
            (Some(idle), Some(latest)) => idle < latest,
            (idle, _) => idle.is_some(),
        }
    }

    /// What an end by idleness is to be called.
    pub(super) fn idle_reason(&self) -> EndReason {
        if self.draining { EndReason::StopRequested } else { EndReason::Idle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_nearer_of_two_limits_counts() {
        for (idle, longest, idleness) in [
            (Some(SECOND), None, Some(true)),
            (None, Some(SECOND), Some(false)),
            (Some(SECOND), Some(2 * SECOND), Some(true)),
            (Some(2 * SECOND), Some(SECOND), Some(false)),
            (None, None, None),
            (Some(Duration::MAX), Some(Duration::MAX), None),
        ] {
            let mut limits = Limits::new(idle, longest);
            limits.observe(true);
            let seen = limits.deadline().map(|_| limits.is_idleness());
            assert_eq!(seen, idleness, "{idle:?} {longest:?}");
        }
    }

    #[test]
    fn a_stopped_clock_loses_nothing() {
        let mut limits = Limits::new(Some(SECOND), Some(3600 * SECOND));
        limits.observe(true);
        limits.suspend();
        assert_eq!(limits.deadline(), None);
        limits.suspend();
        limits.go_on();
        let left = limits.deadline().unwrap() - Instant::now();
        assert!(left > 3590 * SECOND && left <= 3600 * SECOND && !limits.is_idleness());
        limits.go_on();
        assert!(limits.deadline().is_some());
    }

    #[test]
    fn what_is_under_way_puts_idleness_off_also_while_draining() {
        let mut limits = Limits::new(Some(SECOND), None);
        limits.observe(true);
        limits.observe(false);
        assert_eq!(limits.deadline(), None);
        assert_eq!(limits.idle_reason(), EndReason::Idle);
        limits.drain();
        assert_eq!(limits.deadline(), None);
        limits.observe(true);
        assert!(limits.deadline().is_some() && limits.is_idleness());
        assert_eq!(limits.idle_reason(), EndReason::StopRequested);
    }
}
