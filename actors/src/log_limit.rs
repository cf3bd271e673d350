//! A limit on the lines of one kind in the log, so that nobody floods it by causing them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The time in which lines are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// The most lines of one kind in a window: enough to show a fault with some of its variety. A server answers
/// thousands of requests in that time.
const LINES_MAX: u32 = 10;

/// The limit of a place in the code that logs what requests cause. Lines are counted by their kind, such as
/// a model's name; there must be no more kinds than the configuration or an enum has names.
#[derive(Debug, Default)]
pub struct LogLimit(Mutex<BTreeMap<String, Window>>);

/// The lines of one kind since the window began.
#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u32,
}

/// The fate of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Written,
    /// It is the first that is left out, which the log says.
    Announced,
    LeftOut,
}

impl LogLimit {
    /// Makes a limit that has counted nothing yet.
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Calls `write`, which logs one line of this kind, unless there have been too many of them.
    pub fn log(&self, kind: &str, write: impl FnOnce()) {
        let admission = self.admit(kind, Instant::now());
        match admission {
            Admission::Written => write(),
            Admission::Announced => {
                tracing::warn!(kind, "further lines of this kind are left out for the rest of the second");
            }
            Admission::LeftOut => {}
        }
    }

    fn admit(&self, kind: &str, now: Instant) -> Admission {
        let mut windows = self.windows();
        match windows.get_mut(kind) {
            Some(window) => window.admit(now),
            None => windows.entry(kind.to_owned()).or_insert(Window { began: now, lines: 0 }).admit(now),
        }
    }

    fn windows(&self) -> MutexGuard<'_, BTreeMap<String, Window>> {
        // Counts are as good after a panic as before it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn admit(&mut self, now: Instant) -> Admission {
        if now.saturating_duration_since(self.began) >= WINDOW {
            *self = Self { began: now, lines: 0 };
        }
        self.lines = self.lines.saturating_add(1);
        match self.lines {
            ..=LINES_MAX => Admission::Written,
            lines if lines == LINES_MAX + 1 => Admission::Announced,
            _ => Admission::LeftOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_off_announced_once_and_let_through_again_in_the_next_window() {
        let (limit, start) = (LogLimit::new(), Instant::now());
        let fates = |at: Duration, lines: usize| -> Vec<Admission> {
            (0..lines).map(|_| limit.admit("dinov3", start + at)).collect()
        };
        assert!(fates(Duration::ZERO, 10).iter().all(|fate| *fate == Admission::Written));
        assert_eq!(limit.admit("siglip2", start), Admission::Written, "kinds are counted apart");
        assert_eq!(fates(WINDOW / 2, 1), [Admission::Announced]);
        assert!(fates(WINDOW - Duration::from_nanos(1), 1000).iter().all(|fate| *fate == Admission::LeftOut));
        assert_eq!(fates(WINDOW, 1), [Admission::Written]);
        assert_eq!(fates(WINDOW * 100, 1), [Admission::Written], "a line now and then is always written");
    }

    #[test]
    fn lines_that_are_left_out_are_not_made() {
        let limit = LogLimit::new();
        let mut made = 0;
        for _ in 0..1000 {
            limit.log("kind", || made += 1);
        }
        // A machine that is busy may take several windows for a thousand calls, but not one for every ten.
        assert!((10..1000).contains(&made), "{made}");
    }
}
