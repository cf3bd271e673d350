//! The hourly budget of a cloud model. Money is set aside before a request is sent, and corrected when its
//! cost is known: what is never known, because no answer came or it does not say, stays booked.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prometheus::Counter;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::pipe;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::ledger::{Entry, HOUR, Ledger};
use super::section::CloudSection;
use super::usage::{Tokens, Usage};
use crate::cache::{CacheBackend, CacheSection};

/// The budget of one model: of this process, or of all processes where there is a Redis.
pub(super) struct Budget {
    name: Arc<str>,
    usd_per_input_token: f64,
    usd_per_output_token: f64,
    /// Locked for no longer than a sum.
    ledger: Mutex<Ledger>,
    shared: Option<Arc<Shared>>,
    /// All that was ever spent.
    spent: Counter,
    /// True once the log says that a cost was not known.
    has_warned: AtomicBool,
}

/// The sum of all processes, in Redis.
struct Shared {
    connection: ConnectionManager,
    timeout: Duration,
    key: String,
    /// True while Redis does not answer.
    fails: AtomicBool,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Budget").finish_non_exhaustive()
    }
}

/// The cost of one request, booked when it is dropped: what was set aside, unless more has become known.
pub(super) struct Reservation<'a> {
    budget: &'a Budget,
    estimate: Tokens,
    entry: Entry,
    /// True where the money is set aside in Redis, too.
    is_shared: bool,
    cost: Cost,
}

/// The knowledge of what a request has cost.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cost {
    /// The server stated it, or did no work.
    Known(f64),
    /// The server did or may have done the work, and did not say what it took.
    Estimated(f64),
}

impl Budget {
    pub(super) fn new(name: &Arc<str>, section: &CloudSection, cache: &CacheSection, spent: Counter) -> Self {
        let max_usd_per_hour = section.max_usd_per_hour.unwrap_or(f64::INFINITY);
        let shares = cache.backend() == CacheBackend::Redis && max_usd_per_hour.is_finite();
        Self {
            name: Arc::clone(name),
            usd_per_input_token: section.usd_per_million_input_tokens / 1e6,
            usd_per_output_token: section.usd_per_million_output_tokens / 1e6,
            ledger: Mutex::new(Ledger::new(max_usd_per_hour, this_hour(), Instant::now())),
            shared: shares.then(|| Shared::new(name, cache)).flatten().map(Arc::new),
            spent,
            has_warned: AtomicBool::new(false),
        }
    }

    /// Sets money aside for one request; `None` where the hour's budget does not allow it.
    pub(super) async fn reserve(&self, estimate: Tokens) -> Option<Reservation<'_>> {
        let entry = self.ledger().reserve(self.usd(estimate))?;
        // Nothing has been sent yet: giving up while Redis is asked costs nothing.
        let cost = Cost::Known(0.0);
        let mut reservation = Reservation { budget: self, estimate, entry, is_shared: false, cost };
        if let Some(shared) = &self.shared
            && entry.usd > 0.0
            && let Some(sum) = shared.add(entry.hour, entry.usd).await
        {
            reservation.is_shared = true;
            if !self.ledger().allows(sum - entry.usd, entry.usd) {
                return None;
            }
        }
        // Where Redis does not answer, this process keeps to the budget by itself.
        reservation.cost = Cost::Estimated(entry.usd);
        Some(reservation)
    }

    /// Returns the price of tokens in US dollars.
    fn usd(&self, tokens: Tokens) -> f64 {
        tokens.input * self.usd_per_input_token + tokens.output * self.usd_per_output_token
    }

    /// Books what a request has cost in place of what was set aside for it.
    fn book(&self, reservation: &Reservation<'_>) {
        let entry = reservation.entry;
        let (Cost::Known(usd) | Cost::Estimated(usd)) = reservation.cost;
        if reservation.cost == Cost::Estimated(usd) {
            self.warn_of_estimates(usd);
        }
        self.spent.inc_by(usd);
        self.ledger().settle(entry, usd);
        let missing = if reservation.is_shared { usd - entry.usd } else { usd };
        if let (Some(shared), Ok(runtime)) = (&self.shared, Handle::try_current())
            && missing != 0.0
        {
            // No vote waits for Redis here, and a vote that is given up is booked all the same.
            let shared = Arc::clone(shared);
            runtime.spawn(async move { shared.add(entry.hour, missing).await });
        }
    }

    fn warn_of_estimates(&self, usd: f64) {
        if usd > 0.0 && !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                model = &*self.name,
                usd,
                "the server did not say what a request has cost: an estimate is booked, as it will be from now on"
            );
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Sums are as good after a panic as before it.
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.turn(this_hour(), Instant::now());
        ledger
    }
}

impl Reservation<'_> {
    /// Books what an answer has cost. What its usage does not say is estimated, and then no less is booked
    /// than was set aside.
    pub(super) fn settle(mut self, usage: Usage) {
        let budget = self.budget;
        let usd = budget.usd(Tokens {
            input: usage.input.unwrap_or(self.estimate.input),
            output: usage.output.unwrap_or(self.estimate.output),
        });
        let is_known = (usage.input.is_some() || budget.usd_per_input_token <= 0.0)
            && (usage.output.is_some() || budget.usd_per_output_token <= 0.0);
        if is_known {
            budget.ledger().learn(usd);
            self.cost = Cost::Known(usd);
        } else {
            self.cost = Cost::Estimated(usd.max(self.entry.usd));
        }
    }

    /// Gives the money back: the server did no work.
    pub(super) fn release(mut self) {
        self.cost = Cost::Known(0.0);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        self.budget.book(self);
    }
}

impl Shared {
    fn new(name: &str, cache: &CacheSection) -> Option<Self> {
        let limit = Duration::from_millis(cache.timeout_ms);
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(limit))
            .set_number_of_retries(1);
        let client = redis::Client::open(cache.url.as_str()).ok()?;
        let connection = ConnectionManager::new_lazy_with_config(client, config).ok()?;
        let key = format!("concord:spend:{name}");
        Some(Self { connection, timeout: limit, key, fails: AtomicBool::new(false) })
    }

    /// Adds to the sum of an hour, and returns the new one; `None` where Redis does not answer.
    async fn add(&self, hour: u64, usd: f64) -> Option<f64> {
        let mut connection = self.connection.clone();
        let key = format!("{}:{hour}", self.key);
        let mut pipeline = pipe();
        pipeline.cmd("INCRBYFLOAT").arg(&key).arg(usd);
        pipeline.cmd("EXPIRE").arg(&key).arg(2 * HOUR.as_secs()).ignore();
        let sum = timeout(self.timeout, pipeline.query_async::<(f64,)>(&mut connection)).await;
        let sum = sum.ok().and_then(Result::ok).map(|(sum,)| sum);
        if sum.is_none() && !self.fails.swap(true, Ordering::Relaxed) {
            tracing::warn!("Redis does not answer: the other processes do not see what this one has spent");
        } else if sum.is_some() {
            self.fails.store(false, Ordering::Relaxed);
        }
        sum
    }
}

fn this_hour() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / HOUR.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 100 input tokens at $0.001, and 10 output tokens at $0.01.
    const ESTIMATE: Tokens = Tokens { input: 100.0, output: 10.0 };

    fn budget(output_usd_per_million: f64) -> Budget {
        let section = CloudSection {
            usd_per_million_input_tokens: 1_000.0,
            usd_per_million_output_tokens: output_usd_per_million,
            max_usd_per_hour: Some(100.0),
            ..CloudSection::default()
        };
        let spent = Counter::new("spent", "spent").unwrap();
        Budget::new(&"m".into(), &section, &CacheSection::default(), spent)
    }

    #[tokio::test]
    async fn the_cost_of_an_answer_is_booked_and_what_it_does_not_say_is_estimated() {
        for (input, output, output_usd_per_million, expected) in [
            (Some(50.0), Some(1.0), 10_000.0, 0.06),
            (Some(1000.0), Some(1.0), 10_000.0, 1.01),
            (None, None, 10_000.0, 0.2),
            (Some(50.0), None, 10_000.0, 0.2),
            (Some(1000.0), None, 10_000.0, 1.1),
            (None, Some(100.0), 10_000.0, 1.1),
            // What has no price need not be known.
            (Some(50.0), None, 0.0, 0.05),
        ] {
            let budget = budget(output_usd_per_million);
            let reservation = budget.reserve(ESTIMATE).await.unwrap();
            reservation.settle(Usage { input, output });
            let booked = budget.spent.get();
            assert!((booked - expected).abs() < 1e-9, "{input:?}, {output:?}: {booked}, not {expected}");
        }
    }

    #[tokio::test]
    async fn a_request_that_was_given_up_is_booked_and_one_that_was_refused_is_not() {
        let budget = budget(10_000.0);
        budget.reserve(ESTIMATE).await.unwrap().release();
        assert!(budget.spent.get().abs() < 1e-9);
        drop(budget.reserve(ESTIMATE).await.unwrap());
        assert!((budget.spent.get() - 0.2).abs() < 1e-9, "the estimate");
        let dear = Usage { input: Some(1000.0), output: Some(0.0) };
        budget.reserve(ESTIMATE).await.unwrap().settle(dear);
        budget.reserve(ESTIMATE).await.unwrap().settle(Usage { input: Some(1.0), output: Some(0.0) });
        drop(budget.reserve(ESTIMATE).await.unwrap());
        let expected = 0.2 + 1.0 + 0.001 + 1.0;
        assert!((budget.spent.get() - expected).abs() < 1e-9, "the dearest answer so far");
    }
}
