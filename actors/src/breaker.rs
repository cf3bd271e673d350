//! A circuit breaker: a server that has failed several times in a row is not called for a while, then tried
//! again.

use std::time::{Duration, Instant};

/// A breaker, closed while calls succeed. The caller passes the clock in.
#[derive(Debug)]
pub(crate) struct Breaker {
    /// The failures in a row that open it.
    failures_max: u32,
    /// The time that it stays open.
    pause: Duration,
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    pub(crate) fn new(failures_max: u32, pause: Duration) -> Self {
        Self { failures_max, pause, failures: 0, open_until: None }
    }

    /// Returns whether a call may be made now. After the pause one may, and the pause begins again, so that
    /// others do not follow before that one has succeeded.
    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        match self.open_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + self.pause);
                true
            }
            None => true,
        }
    }

    /// Returns whether calls are refused for now.
    pub(crate) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    /// Records a call that succeeded: the breaker closes.
    pub(crate) fn succeeded(&mut self) {
        self.failures = 0;
        self.open_until = None;
    }

    /// Records a call that failed.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.failures_max {
            self.open_until = Some(now + self.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURES_MAX: u32 = 3;
    const PAUSE: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(FAILURES_MAX, PAUSE)
    }

    #[test]
    fn a_server_that_fails_is_skipped_and_tried_once_a_pause() {
        let mut breaker = breaker();
        let start = Instant::now();
        for _ in 0..FAILURES_MAX {
            assert!(breaker.allows(start));
            breaker.failed(start);
        }
        assert!(!breaker.allows(start) && !breaker.allows(start + PAUSE / 2));
        let later = start + PAUSE;
        assert!(breaker.allows(later), "one is tried");
        assert!(!breaker.allows(later), "and only one");
        breaker.succeeded();
        assert!(breaker.allows(later) && breaker.allows(later));
    }

    #[test]
    fn single_failures_change_nothing() {
        let mut breaker = breaker();
        let now = Instant::now();
        for _ in 0..10 {
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(breaker.allows(now));
    }
}
