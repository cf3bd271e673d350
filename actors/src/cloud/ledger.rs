//! The books of an hour: what has been spent, and whether one more request may be paid for. Pure: the caller
//! passes the clocks in.

use std::time::{Duration, Instant};

pub(super) const HOUR: Duration = Duration::from_secs(3600);
/// The part of the limit that sums of fractions may be wrong by.
const TOLERANCE: f64 = 1e-9;

/// The books of one model in one process.
#[derive(Debug)]
pub(super) struct Ledger {
    max_usd_per_hour: f64,
    /// The hour of the wall clock, counted from 1970, that the books are of.
    hour: u64,
    /// The moment when they were opened, by the clock that nobody can set.
    opened: Instant,
    /// The money spent in that hour, and set aside for requests in flight.
    usd: f64,
    /// The cost of the dearest answer so far; `None` before any cost was known.
    dearest: Option<f64>,
}

/// Money that was set aside, and the hour that it belongs to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Entry {
    pub(super) hour: u64,
    pub(super) usd: f64,
}

impl Ledger {
    pub(super) fn new(max_usd_per_hour: f64, hour: u64, now: Instant) -> Self {
        Self { max_usd_per_hour, hour, opened: now, usd: 0.0, dearest: None }
    }

    /// Opens new books when the hour is over. A wall clock that is set back does not empty them, and one that
    /// was far ahead for a moment does not keep them open for longer than an hour.
    pub(super) fn turn(&mut self, hour: u64, now: Instant) {
        if hour > self.hour || now.saturating_duration_since(self.opened) >= HOUR {
            (self.hour, self.opened, self.usd) = (hour, now, 0.0);
        }
    }

    /// Sets money aside for one more request: as much as the dearest answer so far has cost, and before any
    /// cost is known the estimate. `None` where the budget does not allow it.
    pub(super) fn reserve(&mut self, estimate: f64) -> Option<Entry> {
        let usd = self.dearest.unwrap_or(estimate);
        if !self.allows(self.usd, usd) {
            return None;
        }
        self.usd += usd;
        Some(Entry { hour: self.hour, usd })
    }

    /// Returns whether `usd` more may be spent when `spent` have been. While no cost is known one request an
    /// hour may be made in any case: an estimate that is too high would turn the model off for good.
    pub(super) fn allows(&self, spent: f64, usd: f64) -> bool {
        let tolerance = self.max_usd_per_hour * TOLERANCE;
        spent + usd <= self.max_usd_per_hour + tolerance || (self.dearest.is_none() && spent <= tolerance)
    }

    /// Replaces money that was set aside by what was spent. The books of an hour that is over stay closed.
    pub(super) fn settle(&mut self, entry: Entry, usd: f64) {
        if entry.hour == self.hour {
            self.usd = (self.usd + usd - entry.usd).max(0.0);
        }
    }

    /// Remembers a cost that the server itself stated.
    pub(super) fn learn(&mut self, usd: f64) {
        self.dearest = Some(self.dearest.map_or(usd, |dearest| dearest.max(usd)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THIS_HOUR: u64 = 500_000;

    fn opened_now(max_usd_per_hour: f64) -> (Ledger, Instant) {
        let now = Instant::now();
        (Ledger::new(max_usd_per_hour, THIS_HOUR, now), now)
    }

    #[test]
    fn the_limit_holds_for_requests_in_flight_too() {
        let (mut ledger, _) = opened_now(0.3);
        let first = ledger.reserve(0.05).unwrap();
        ledger.settle(first, 0.1);
        ledger.learn(0.1);
        let second = ledger.reserve(0.05).unwrap();
        assert!((second.usd - 0.1).abs() < 1e-12, "the dearest answer counts, not the estimate");
        let third = ledger.reserve(0.05).unwrap();
        assert_eq!(ledger.reserve(0.05), None, "0.1 is spent, and 0.2 are set aside");
        ledger.settle(second, 0.0);
        let fourth = ledger.reserve(0.05).unwrap();
        ledger.settle(third, third.usd);
        ledger.settle(fourth, fourth.usd);
        assert_eq!(ledger.reserve(0.05), None, "0.3 is spent");
    }

    #[test]
    fn an_estimate_above_the_limit_lets_one_request_through_until_a_cost_is_known() {
        let (mut ledger, now) = opened_now(0.25);
        let first = ledger.reserve(0.4).unwrap();
        assert_eq!(ledger.reserve(0.4), None, "one is in flight");
        ledger.settle(first, first.usd);
        assert_eq!(ledger.reserve(0.4), None, "its cost is not known, and the estimate was booked");
        ledger.turn(THIS_HOUR + 1, now);
        let second = ledger.reserve(0.4).unwrap();
        ledger.settle(second, 0.1);
        ledger.learn(0.1);
        assert!(ledger.reserve(0.4).is_some(), "an answer costs 0.1");
        ledger.learn(0.3);
        ledger.turn(THIS_HOUR + 2, now);
        assert_eq!(ledger.reserve(0.4), None, "an answer costs more than the hour's budget");
    }

    #[test]
    fn the_books_are_emptied_by_a_new_hour_and_not_by_a_clock_that_is_set_back() {
        const CENTURY: u64 = 100 * 366 * 24;
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        for (turns, is_emptied) in [
            (&[(THIS_HOUR, minutes(59))][..], false),
            (&[(THIS_HOUR + 1, minutes(1))], true),
            (&[(THIS_HOUR - 1, minutes(1))], false),
            (&[(THIS_HOUR - 1, minutes(1)), (THIS_HOUR, minutes(2))], false),
            (&[(THIS_HOUR - 20_000, minutes(60))], true),
        ] {
            let (mut ledger, opened) = opened_now(1.0);
            ledger.reserve(1.0).unwrap();
            for (hour, later) in turns {
                ledger.turn(*hour, opened + *later);
            }
            assert_eq!(ledger.reserve(1.0).is_some(), is_emptied, "{turns:?}");
        }
        let (mut ledger, opened) = opened_now(1.0);
        ledger.turn(THIS_HOUR + CENTURY, opened);
        ledger.reserve(1.0).unwrap();
        ledger.turn(THIS_HOUR, opened + minutes(59));
        assert_eq!(ledger.reserve(1.0), None);
        ledger.turn(THIS_HOUR + 1, opened + minutes(60));
        assert!(ledger.reserve(1.0).is_some(), "an hour after a glance at the next century");
    }

    #[test]
    fn an_answer_that_comes_in_the_next_hour_changes_nothing_there() {
        let (mut ledger, now) = opened_now(1.0);
        let entry = ledger.reserve(0.5).unwrap();
        ledger.turn(THIS_HOUR + 1, now);
        ledger.settle(entry, 0.1);
        ledger.reserve(1.0).unwrap();
        assert_eq!(ledger.reserve(0.1), None);
    }
}
