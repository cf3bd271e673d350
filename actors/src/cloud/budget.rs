//! The hourly budget of a cloud model: what has been spent since the hour began, and whether more may be.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{cmd, pipe};
use tokio::time::timeout;

use super::answer::Usage;
use super::section::CloudSection;
use crate::cache::{CacheBackend, CacheSection};
use crate::log_limit::LogLimit;

const HOUR_S: u64 = 3600;

/// By the keys of budgets: each answer of a server can cause such a line.
static NOT_BOOKED: LogLimit = LogLimit::new();

/// The budget of one model: of this process, or of all processes where there is a Redis.
pub(super) struct Budget {
    usd_per_input_token: f64,
    usd_per_output_token: f64,
    max_usd_per_hour: f64,
    ledger: Mutex<Ledger>,
    shared: Option<Shared>,
}

#[derive(Debug, Default)]
struct Ledger {
    /// The hour, counted from 1970.
    hour: u64,
    usd: f64,
    /// The expected cost of a request in flight: the greatest one so far.
    max_cost: f64,
    in_flight: u32,
}

struct Shared {
    connection: ConnectionManager,
    timeout: Duration,
    key: String,
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Budget").finish_non_exhaustive()
    }
}

/// Money that is set aside for a request in flight; released on drop.
pub(super) struct Reservation<'a>(&'a Budget);

impl Budget {
    pub(super) fn new(name: &str, section: &CloudSection, cache: &CacheSection) -> Self {
        Self {
            usd_per_input_token: section.usd_per_million_input_tokens / 1e6,
            usd_per_output_token: section.usd_per_million_output_tokens / 1e6,
            max_usd_per_hour: section.max_usd_per_hour.unwrap_or(f64::INFINITY),
            ledger: Mutex::default(),
            shared: (cache.backend() == CacheBackend::Redis).then(|| Shared::new(name, cache)).flatten(),
        }
    }

    /// Sets money aside for one more request; `None` where the hour's budget does not allow it.
    pub(super) async fn reserve(&self) -> Option<Reservation<'_>> {
        let hour = this_hour();
        let everywhere = match &self.shared {
            Some(shared) if self.max_usd_per_hour.is_finite() => shared.spent(hour).await,
            _ => None,
        };
        let mut ledger = self.ledger(hour);
        // The spending of all processes; this one's alone where Redis does not answer.
        let spent = everywhere.unwrap_or(0.0).max(ledger.usd);
        let expected = f64::from(ledger.in_flight + 1) * ledger.max_cost;
        if spent >= self.max_usd_per_hour || spent + expected > self.max_usd_per_hour {
            return None;
        }
        ledger.in_flight += 1;
        Some(Reservation(self))
    }

    /// Books the cost of an answer and returns it in US dollars.
    pub(super) async fn add(&self, usage: Usage) -> f64 {
        let usd = usage.input_tokens as f64 * self.usd_per_input_token
            + usage.output_tokens as f64 * self.usd_per_output_token;
        if usd > 0.0 {
            let hour = this_hour();
            {
                let mut ledger = self.ledger(hour);
                ledger.usd += usd;
                ledger.max_cost = ledger.max_cost.max(usd);
            }
            if let Some(shared) = &self.shared {
                shared.add(hour, usd).await;
            }
        }
        usd
    }

    fn ledger(&self, hour: u64) -> MutexGuard<'_, Ledger> {
        // Sums are as good after a panic as before it.
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        if ledger.hour != hour {
            (ledger.hour, ledger.usd) = (hour, 0.0);
        }
        ledger
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut ledger = self.0.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.in_flight = ledger.in_flight.saturating_sub(1);
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
        Some(Self { connection, timeout: limit, key: format!("concord:spend:{name}") })
    }

    async fn spent(&self, hour: u64) -> Option<f64> {
        let mut connection = self.connection.clone();
        let mut command = cmd("GET");
        command.arg(format!("{}:{hour}", self.key));
        let answer = timeout(self.timeout, command.query_async::<Option<f64>>(&mut connection)).await;
        answer.ok()?.ok()?
    }

    async fn add(&self, hour: u64, usd: f64) {
        let mut connection = self.connection.clone();
        let key = format!("{}:{hour}", self.key);
        let mut pipeline = pipe();
        pipeline.cmd("INCRBYFLOAT").arg(&key).arg(usd).ignore();
        pipeline.cmd("EXPIRE").arg(&key).arg(2 * HOUR_S).ignore();
        let booked = timeout(self.timeout, pipeline.query_async::<()>(&mut connection)).await;
        if !matches!(booked, Ok(Ok(()))) {
            NOT_BOOKED.log(&self.key, || {
                tracing::warn!(
                    "Redis does not answer: the other processes do not see what this one has spent"
                );
            });
        }
    }
}

fn this_hour() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() / HOUR_S)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_limit_holds_for_requests_under_way_too() {
        let section = CloudSection {
            usd_per_million_input_tokens: 1000.0,
            max_usd_per_hour: Some(0.25),
            ..CloudSection::default()
        };
        let budget = Budget::new("m", &section, &CacheSection::default());
        let usage = Usage { input_tokens: 100, output_tokens: 0 };
        let first = budget.reserve().await.unwrap();
        assert!((budget.add(usage).await - 0.1).abs() < 1e-9);
        drop(first);
        let second = budget.reserve().await.unwrap();
        assert!(budget.reserve().await.is_none(), "0.1 spent, and two of 0.1 would be 0.3");
        drop(second);
        budget.add(usage).await;
        assert!(budget.reserve().await.is_none(), "0.2 spent, and one of 0.1 would be 0.3");
    }
}
