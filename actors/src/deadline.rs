//! Defines the deadline of work that several requests wait for, which is checked before every expensive step.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Deadlines are kept as nanoseconds since this moment, so that they fit an atomic number.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A deadline shared by a computation and all who wait for it. The work is wanted while one of them waits and
/// the latest of their deadlines has not passed.
#[derive(Debug)]
pub(crate) struct SharedDeadline {
    waiters: AtomicUsize,
    /// The latest of their deadlines.
    deadline_ns: AtomicU64,
    /// Notified when the last of them leaves.
    abandoned: Notify,
}

/// The interest of one who waits; withdrawn when it is dropped.
#[derive(Debug)]
pub(crate) struct InterestGuard(Arc<SharedDeadline>);

/// The reason why work is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CancelReason {
    /// Everyone has left.
    Abandoned,
    /// The latest deadline has passed.
    Expired,
}

impl CancelReason {
    /// Returns the reason's name in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Expired => "expired",
        }
    }
}

impl SharedDeadline {
    /// Creates a deadline with one who waits.
    pub(crate) fn new(deadline: Instant) -> (Arc<Self>, InterestGuard) {
        let deadline = Arc::new(Self {
            waiters: AtomicUsize::new(1),
            deadline_ns: AtomicU64::new(nanoseconds(deadline)),
            abandoned: Notify::new(),
        });
        (Arc::clone(&deadline), InterestGuard(deadline))
    }

    /// Adds one more who waits until `deadline`; `None` when the work is not wanted any more, because it may
    /// have been abandoned already.
    pub(crate) fn join(self: &Arc<Self>, deadline: Instant) -> Option<InterestGuard> {
        if self.cancel_reason().is_some() {
            return None;
        }
        let add_to_some = |waiters: usize| (waiters > 0).then_some(waiters + 1);
        self.waiters.fetch_update(Ordering::AcqRel, Ordering::Acquire, add_to_some).ok()?;
        self.deadline_ns.fetch_max(nanoseconds(deadline), Ordering::AcqRel);
        Some(InterestGuard(Arc::clone(self)))
    }

    /// Returns why the work is not wanted any more; `None` while it is.
    pub(crate) fn cancel_reason(&self) -> Option<CancelReason> {
        // The time first: those who waited leave at the deadline, and that is not why.
        if self.time_left().is_zero() {
            Some(CancelReason::Expired)
        } else if self.waiters.load(Ordering::Acquire) == 0 {
            Some(CancelReason::Abandoned)
        } else {
            None
        }
    }

    /// Resolves when the work is not wanted any more.
    pub(crate) async fn cancelled(&self) -> CancelReason {
        loop {
            let abandoned = self.abandoned.notified();
            if let Some(reason) = self.cancel_reason() {
                return reason;
            }
            // Whoever joins may have moved the deadline meanwhile: hence the loop.
            let _elapsed = tokio::time::timeout(self.time_left(), abandoned).await;
        }
    }

    /// Returns the time until the latest deadline.
    pub(crate) fn time_left(&self) -> Duration {
        let deadline = *START + Duration::from_nanos(self.deadline_ns.load(Ordering::Acquire));
        deadline.saturating_duration_since(Instant::now())
    }
}

impl Drop for InterestGuard {
    fn drop(&mut self) {
        if self.0.waiters.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.abandoned.notify_waiters();
        }
    }
}

fn nanoseconds(deadline: Instant) -> u64 {
    u64::try_from(deadline.saturating_duration_since(*START).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_an_hour() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn work_is_wanted_until_the_last_one_leaves_and_never_again() {
        let (deadline, first) = SharedDeadline::new(in_an_hour());
        let second = deadline.join(in_an_hour()).unwrap();
        drop(first);
        assert_eq!(deadline.cancel_reason(), None);
        drop(second);
        assert_eq!(deadline.cancel_reason(), Some(CancelReason::Abandoned));
        assert!(deadline.join(in_an_hour()).is_none());
    }

    #[test]
    fn the_latest_deadline_counts() {
        let (deadline, _first) = SharedDeadline::new(Instant::now() + Duration::from_millis(20));
        let _second = deadline.join(in_an_hour()).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(deadline.cancel_reason(), None);
        let (late, interest) = SharedDeadline::new(Instant::now());
        assert_eq!(late.cancel_reason(), Some(CancelReason::Expired));
        drop(interest);
        assert_eq!(
            late.cancel_reason(),
            Some(CancelReason::Expired),
            "who leaves because of that abandons nothing"
        );
    }

    #[tokio::test]
    async fn leaving_and_lateness_wake_the_work() {
        let (deadline, interest) = SharedDeadline::new(in_an_hour());
        let woken = tokio::spawn(async move { deadline.cancelled().await });
        tokio::task::yield_now().await;
        drop(interest);
        assert_eq!(woken.await.unwrap(), CancelReason::Abandoned);
        let (deadline, _interest) = SharedDeadline::new(Instant::now() + Duration::from_millis(5));
        assert_eq!(deadline.cancelled().await, CancelReason::Expired);
    }
}
