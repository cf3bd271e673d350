//! The most images that a replica runs together: as many as configured, and fewer for a while after its
//! memory was too small for that.

use std::time::{Duration, Instant};

/// The limit of one replica. It outlives the replica's thread, as the weights do.
#[derive(Debug)]
pub(super) struct BatchLimit {
    configured: usize,
    current: usize,
    /// The time that a lowered limit stays before it is doubled.
    recovery: Duration,
    /// The time when it was lowered or raised.
    changed: Instant,
}

impl BatchLimit {
    pub(super) fn new(configured: usize, recovery: Duration, now: Instant) -> Self {
        Self { configured, current: configured, recovery, changed: now }
    }

    /// Returns the limit as of the last call of [`BatchLimit::at`].
    pub(super) fn current(&self) -> usize {
        self.current
    }

    /// Returns the limit now: doubled for every `recovery` that has passed since it was lowered, up to the
    /// configured one.
    pub(super) fn at(&mut self, now: Instant) -> usize {
        while self.current < self.configured && now.saturating_duration_since(self.changed) >= self.recovery {
            self.current = self.current.saturating_mul(2).min(self.configured);
            self.changed += self.recovery;
        }
        self.current
    }

    /// Lowers the limit because the memory was too small for more than `batch` images; at least one is always
    /// tried.
    pub(super) fn lower(&mut self, batch: usize, now: Instant) {
        self.current = self.current.min(batch.max(1));
        self.changed = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lowered_limit_doubles_after_every_recovery_up_to_the_configured_one() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut limit = BatchLimit::new(12, Duration::from_secs(60), start);
        assert_eq!(limit.at(after(1000)), 12);
        limit.lower(6, after(1000));
        limit.lower(2, after(1001));
        // A larger batch that failed earlier says nothing of smaller ones.
        limit.lower(3, after(1001));
        for (seconds, expected) in
            [(1001, 2), (1060, 2), (1061, 4), (1120, 4), (1121, 8), (1181, 12), (9000, 12)]
        {
            assert_eq!(limit.at(after(seconds)), expected, "after {seconds} s");
        }
        limit.lower(0, after(9000));
        assert_eq!((limit.current(), limit.at(after(9000))), (1, 1), "one image is always tried");
        assert_eq!(limit.at(after(9200)), 8, "several recoveries at once");
    }
}
