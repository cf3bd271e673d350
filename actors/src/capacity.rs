//! The capacity of the models for one kind of work: how much may be under way at once, so that all of it ends by
//! its deadline. Estimated from what has been completed while there was work; pure but for a lock, with the clock
//! passed in.
//!
//! By Little's law (L = λW), work that arrives when `n` pieces are under way and `r` are completed a second ends
//! after about `n / r` seconds, whatever stages and queues it goes through.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::deadline::{CancelReason, SharedDeadline};
use crate::pool::Lane;

/// The share of the time to its deadline that a piece of work is expected to take at the most. The rest is for
/// the error of the estimate: images that need more stages, and other work on the machine.
const TIME_SHARE: f64 = 0.5;
/// The time, in seconds of work, after which an observation counts 1/e: long enough for some tens of completions
/// of slow models, and short beside the time in which the load changes.
const MEMORY_S: f64 = 2.0;
/// The completions a second that are assumed before anything is known, and the seconds of work for which that
/// counts as an observation: what many clients of a server that has just started send at once is admitted.
const ASSUMED_PER_S: f64 = 16.0;
const ASSUMED_S: f64 = 0.25;
/// The work that is admitted against the estimate at first; half of it after each piece that was too late.
const FIRST: f64 = 16.0;
/// The growth of what is admitted against the estimate, for each piece that was completed in time while that
/// decided: work that runs in batches may be completed faster when there is more of it. Small, because each attempt
/// that goes too far makes several pieces late.
const GROWTH: f64 = 1.0 / 256.0;
/// The time in which late work halves the trial once.
const TRIAL_PAUSE: Duration = Duration::from_millis(500);
/// The refusals for each completion from which on overload is heavy: with so many, what is looked up for each
/// before it is refused takes the cores that the models need.
const HEAVY: f64 = 16.0;
/// The longest wait that a refused client is told.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The capacities of a task for small and for large images, so that many large ones leave small ones theirs.
#[derive(Debug, Clone)]
pub(crate) struct Capacities {
    small: Arc<Capacity>,
    large: Arc<Capacity>,
}

/// The capacity for one kind of work. A lock, because the routers are on several threads; held for a few
/// additions.
#[derive(Debug)]
pub(crate) struct Capacity(Mutex<Estimate>);

/// The refusal of work that would not end by its deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overloaded {
    /// The time in which all that is under way now will have been completed.
    pub(crate) retry_after: Duration,
}

/// A piece of work under way, until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWay {
    capacity: Arc<Capacity>,
    deadline: Arc<SharedDeadline>,
    is_completed: bool,
}

#[derive(Debug)]
struct Estimate {
    under_way: usize,
    /// The completions and the refusals, and the seconds in which there was work; all fade with the latter.
    completed: f64,
    refused: f64,
    busy_s: f64,
    updated: Instant,
    /// The work that may be under way by the estimate, as of the last arrival.
    expected: f64,
    /// The work that may be under way whatever the estimate says: it grows and shrinks by what came of it.
    trial: f64,
    /// The time when that last shrank.
    lowered: Instant,
}

impl Capacities {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { small: Arc::new(Capacity::new(now)), large: Arc::new(Capacity::new(now)) }
    }

    pub(crate) fn of(&self, lane: Lane) -> &Arc<Capacity> {
        match lane {
            Lane::Small => &self.small,
            Lane::Large => &self.large,
        }
    }
}

impl Capacity {
    pub(crate) fn new(now: Instant) -> Self {
        let estimate = Estimate {
            under_way: 0,
            completed: ASSUMED_PER_S * ASSUMED_S,
            refused: 0.0,
            busy_s: ASSUMED_S,
            updated: now,
            expected: 0.0,
            trial: FIRST,
            lowered: now,
        };
        Self(Mutex::new(estimate))
    }

    /// Refuses a piece of work that would not end in time. What is not costly to look at is refused here only under
    /// heavy overload. Admits nothing.
    pub(crate) fn refuse_early(
        &self,
        now: Instant,
        time_left: Duration,
        is_costly: bool,
    ) -> Option<Overloaded> {
        let mut estimate = self.estimate(now);
        (is_costly || estimate.is_heavy()).then(|| estimate.refusal(time_left)).flatten()
    }

    /// Admits a piece of work with this deadline.
    ///
    /// # Errors
    /// When it would not end in time.
    pub(crate) fn admit(
        self: &Arc<Self>,
        now: Instant,
        deadline: &Arc<SharedDeadline>,
    ) -> Result<UnderWay, Overloaded> {
        let mut estimate = self.estimate(now);
        if let Some(refusal) = estimate.refusal(deadline.time_left()) {
            return Err(refusal);
        }
        estimate.under_way += 1;
        drop(estimate);
        Ok(UnderWay { capacity: Arc::clone(self), deadline: Arc::clone(deadline), is_completed: false })
    }

    fn estimate(&self, now: Instant) -> MutexGuard<'_, Estimate> {
        // Numbers are as good after a panic as before it.
        let mut estimate = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        estimate.advance(now);
        estimate
    }
}

impl UnderWay {
    /// Records that the work has been done.
    pub(crate) fn complete(mut self) {
        self.is_completed = true;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut estimate = self.capacity.estimate(Instant::now());
        estimate.end(match (self.is_completed, self.deadline.cancel_reason()) {
            (true, _) => End::Completed,
            (false, Some(CancelReason::Expired)) => End::Expired,
            (false, _) => End::Other,
        });
    }
}

/// The ways in which a piece of work ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Completed,
    /// Its deadline passed.
    Expired,
    /// It failed, or nobody waited for it any more: that says nothing of the capacity.
    Other,
}

impl Estimate {
    fn advance(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = self.updated.max(now);
        if self.under_way > 0 {
            let fading = (-elapsed / MEMORY_S).exp();
            self.completed *= fading;
            self.refused *= fading;
            self.busy_s = self.busy_s * fading + elapsed;
        }
    }

    /// Returns the completions a second while there is work.
    fn rate(&self) -> f64 {
        self.completed / self.busy_s
    }

    fn is_heavy(&self) -> bool {
        self.refused > HEAVY * self.completed.max(1.0)
    }

    fn refusal(&mut self, time_left: Duration) -> Option<Overloaded> {
        self.expected = self.rate() * time_left.as_secs_f64() * TIME_SHARE;
        if ((self.under_way + 1) as f64) <= self.expected.max(self.trial) {
            return None;
        }
        self.refused += 1.0;
        let wait = self.under_way as f64 / self.rate();
        let retry_after = Duration::try_from_secs_f64(wait).unwrap_or(RETRY_AFTER_MAX).min(RETRY_AFTER_MAX);
        Some(Overloaded { retry_after })
    }

    fn end(&mut self, how: End) {
        match how {
            End::Completed => {
                self.completed += 1.0;
                if self.expected < self.trial && self.under_way as f64 >= self.trial.floor() {
                    self.trial += GROWTH;
                }
            }
            // Once for all that were late together.
            End::Expired if self.updated.saturating_duration_since(self.lowered) >= TRIAL_PAUSE => {
                self.trial = (self.trial / 2.0).max(1.0);
                self.lowered = self.updated;
            }
            End::Expired | End::Other => {}
        }
        self.under_way = self.under_way.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that completes one piece after the other, each in `service`, with arrivals at a steady rate.
    struct Simulation {
        service: Duration,
        timeout: Duration,
    }

    /// What came of the arrivals.
    #[derive(Debug, Default)]
    struct Outcomes {
        completed: u32,
        expired: u32,
        refused: u32,
        retry_after_max: Duration,
    }

    impl Simulation {
        fn run(&self, arrivals_per_s: f64, seconds: f64) -> Outcomes {
            let start = Instant::now();
            let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
            let capacity = Capacity::new(start);
            let mut outcomes = Outcomes::default();
            // The deadlines of the pieces under way, in the order of service, and when the first one ends.
            let mut queue = std::collections::VecDeque::new();
            let mut next_end = f64::INFINITY;
            for arrival in 0..(arrivals_per_s * seconds) as u32 {
                let now = f64::from(arrival) / arrivals_per_s;
                while next_end <= now {
                    let deadline: f64 = queue.pop_front().unwrap();
                    let is_late = next_end > deadline;
                    capacity.estimate(at(next_end)).end(if is_late { End::Expired } else { End::Completed });
                    if is_late {
                        outcomes.expired += 1;
                    } else {
                        outcomes.completed += 1;
                    }
                    next_end =
                        if queue.is_empty() { f64::INFINITY } else { next_end + self.service.as_secs_f64() };
                }
                let mut estimate = capacity.estimate(at(now));
                match estimate.refusal(self.timeout) {
                    Some(Overloaded { retry_after }) => {
                        outcomes.refused += 1;
                        outcomes.retry_after_max = outcomes.retry_after_max.max(retry_after);
                    }
                    None => {
                        estimate.under_way += 1;
                        queue.push_back(now + self.timeout.as_secs_f64());
                        next_end = next_end.min(now + self.service.as_secs_f64());
                    }
                }
            }
            outcomes
        }
    }

    #[test]
    fn what_is_admitted_ends_in_time_and_the_server_stays_busy_at_any_overload() {
        for (service_ms, timeout_ms, factor) in
            [(10, 1500, 10.0), (10, 1500, 50.0), (10, 10_000, 50.0), (100, 2000, 10.0), (2, 200, 3.0)]
        {
            let simulation = Simulation {
                service: Duration::from_millis(service_ms),
                timeout: Duration::from_millis(timeout_ms),
            };
            let peak = 1000.0 / service_ms as f64;
            let outcomes = simulation.run(peak * factor, 30.0);
            let case = format!("{service_ms} ms each, {timeout_ms} ms, {factor} times: {outcomes:?}");
            assert!(f64::from(outcomes.completed) > 0.95 * peak * 30.0, "{case}");
            assert!(f64::from(outcomes.expired) <= 0.01 * f64::from(outcomes.completed), "{case}");
            // Clients are told whole seconds.
            assert!(outcomes.retry_after_max <= simulation.timeout.max(Duration::from_secs(1)), "{case}");
        }
    }

    #[test]
    fn nothing_is_refused_below_the_peak() {
        let simulation =
            Simulation { service: Duration::from_millis(20), timeout: Duration::from_millis(10_000) };
        let outcomes = simulation.run(45.0, 30.0);
        assert_eq!((outcomes.refused, outcomes.expired), (0, 0), "{outcomes:?}");
    }

    #[test]
    fn work_that_takes_nearly_all_its_time_is_still_done() {
        let simulation = Simulation { service: Duration::from_secs(3), timeout: Duration::from_secs(4) };
        let outcomes = simulation.run(1.0, 600.0);
        assert!(outcomes.completed >= 150, "{outcomes:?}");
    }
}
