//! Leaves a server alone that has failed several times in a row, and tries it again after a while.

use std::time::{Duration, Instant};

/// Failures in a row until it is left alone: one timeout may be chance.
const FAILURES_MAX: u32 = 3;
/// How long it is left alone: at most one request a second then waits for a server that is gone.
const PAUSE: Duration = Duration::from_secs(1);

/// Closed while calls succeed. The clock is the caller's.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a call may be made now. After the pause one may, and the pause begins again, so that the others do not
    /// follow before that one has succeeded.
    pub(super) fn allows(&mut self, now: Instant) -> bool {
        match self.open_until {
            Some(until) if now < until => false,
            Some(_) => {
                self.open_until = Some(now + PAUSE);
                true
            }
            None => true,
        }
    }

    /// Whether calls are refused for now.
    pub(super) fn is_open(&self) -> bool {
        self.open_until.is_some()
    }

    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    pub(super) fn failed(&mut self, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= FAILURES_MAX {
            self.open_until = Some(now + PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_fails_is_left_alone_and_tried_once_a_pause() {
        let mut breaker = Breaker::default();
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
        let mut breaker = Breaker::default();
        let now = Instant::now();
        for _ in 0..10 {
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(breaker.allows(now));
    }
}
