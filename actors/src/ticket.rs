//! Whether anybody still waits for a piece of work, and until when: asked before every expensive step.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Deadlines are kept as nanoseconds since this moment, so that they fit an atomic number.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Shared by a computation and all who wait for it. The work is wanted while one of them waits and the latest of
/// their deadlines has not passed.
#[derive(Debug)]
pub(crate) struct Ticket {
    waiters: AtomicUsize,
    /// The latest one.
    deadline_ns: AtomicU64,
    /// Told when the last waiter leaves.
    abandoned: Notify,
}

/// One who waits; leaves when it is dropped.
#[derive(Debug)]
pub(crate) struct Waiter(Arc<Ticket>);

/// Why work is not wanted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwanted {
    /// Everyone has left.
    Abandoned,
    /// The latest deadline has passed.
    Expired,
}

impl Unwanted {
    /// As metrics call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Expired => "expired",
        }
    }
}

impl Ticket {
    /// A ticket with one who waits, until `deadline`.
    pub(crate) fn new(deadline: Instant) -> (Arc<Self>, Waiter) {
        let ticket = Arc::new(Self {
            waiters: AtomicUsize::new(1),
            deadline_ns: AtomicU64::new(nanoseconds(deadline)),
            abandoned: Notify::new(),
        });
        (Arc::clone(&ticket), Waiter(ticket))
    }

    /// One more who waits, until `deadline`; `None` when the work is not wanted any more, because it may have been
    /// given up already.
    pub(crate) fn join(self: &Arc<Self>, deadline: Instant) -> Option<Waiter> {
        if self.unwanted().is_some() {
            return None;
        }
        let add_to_some = |waiters: usize| (waiters > 0).then_some(waiters + 1);
        self.waiters.fetch_update(Ordering::AcqRel, Ordering::Acquire, add_to_some).ok()?;
        self.deadline_ns.fetch_max(nanoseconds(deadline), Ordering::AcqRel);
        Some(Waiter(Arc::clone(self)))
    }

    /// Why the work is not wanted any more; `None` while it is.
    pub(crate) fn unwanted(&self) -> Option<Unwanted> {
        if self.waiters.load(Ordering::Acquire) == 0 {
            Some(Unwanted::Abandoned)
        } else if self.time_left().is_zero() {
            Some(Unwanted::Expired)
        } else {
            None
        }
    }

    /// Resolves when the work is not wanted any more.
    pub(crate) async fn until_unwanted(&self) -> Unwanted {
        loop {
            let abandoned = self.abandoned.notified();
            if let Some(why) = self.unwanted() {
                return why;
            }
            // Whoever joins may have moved the deadline meanwhile: hence the loop.
            let _elapsed = tokio::time::timeout(self.time_left(), abandoned).await;
        }
    }

    pub(crate) fn time_left(&self) -> Duration {
        let deadline = *START + Duration::from_nanos(self.deadline_ns.load(Ordering::Acquire));
        deadline.saturating_duration_since(Instant::now())
    }
}

impl Drop for Waiter {
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
        let (ticket, first) = Ticket::new(in_an_hour());
        let second = ticket.join(in_an_hour()).unwrap();
        drop(first);
        assert_eq!(ticket.unwanted(), None);
        drop(second);
        assert_eq!(ticket.unwanted(), Some(Unwanted::Abandoned));
        assert!(ticket.join(in_an_hour()).is_none());
    }

    #[test]
    fn the_latest_deadline_counts() {
        let (ticket, _first) = Ticket::new(Instant::now() + Duration::from_millis(20));
        let _second = ticket.join(in_an_hour()).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(ticket.unwanted(), None);
        let (late, _waiter) = Ticket::new(Instant::now());
        assert_eq!(late.unwanted(), Some(Unwanted::Expired));
    }

    #[tokio::test]
    async fn leaving_and_lateness_wake_the_work() {
        let (ticket, waiter) = Ticket::new(in_an_hour());
        let told = tokio::spawn(async move { ticket.until_unwanted().await });
        tokio::task::yield_now().await;
        drop(waiter);
        assert_eq!(told.await.unwrap(), Unwanted::Abandoned);
        let (ticket, _waiter) = Ticket::new(Instant::now() + Duration::from_millis(5));
        assert_eq!(ticket.until_unwanted().await, Unwanted::Expired);
    }
}
