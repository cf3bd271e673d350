//! The store in a Redis server, which may be slow, gone, or full of what others wrote.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{RedisError, cmd, pipe};
use tokio::time::timeout;

use super::messages::{Get, Lookup};
use super::seal::Seal;
use super::section::CacheSection;
use super::value::Value;
use crate::breaker::Breaker;
use crate::digest::Digest;
use crate::metrics::{CacheError, Metrics};

/// The most writes in flight at once; more are dropped, since no request waits for them and would slow down.
const WRITES_MAX: usize = 256;
/// The timeout of writes. No request waits for them, so it may be longer than that of reads.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The failures in a row that open the circuit: one timeout may be chance.
const FAILURES_MAX: u32 = 3;
/// The time that the circuit stays open: at most one request a second then waits for a server that is gone.
const PAUSE: Duration = Duration::from_secs(1);

/// The store. Its connection is opened at the first use and again when it breaks.
pub(crate) struct RedisStore {
    connection: ConnectionManager,
    seal: Seal,
    ttl_s: u64,
    timeout: Duration,
    /// Shared by the calls in flight; locked for no longer than a comparison.
    breaker: Mutex<Breaker>,
    writes: AtomicUsize,
    metrics: Metrics,
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("RedisStore").finish_non_exhaustive()
    }
}

impl RedisStore {
    pub(super) fn new(section: &CacheSection, metrics: &Metrics) -> Result<Self, RedisError> {
        let limit = Duration::from_millis(section.timeout_ms);
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(limit))
            .set_response_timeout(Some(WRITE_TIMEOUT))
            .set_number_of_retries(1);
        let client = redis::Client::open(section.url.as_str())?;
        Ok(Self {
            connection: ConnectionManager::new_lazy_with_config(client, config)?,
            seal: Seal::new(section.secret().as_deref()),
            ttl_s: section.ttl_s,
            timeout: limit,
            breaker: Mutex::new(Breaker::new(FAILURES_MAX, PAUSE)),
            writes: AtomicUsize::new(0),
            metrics: metrics.clone(),
        })
    }

    /// One round trip for all keys, so that a slow server delays a request once.
    pub(super) async fn get(&self, get: &Get) -> Lookup {
        let mut command = cmd("MGET");
        let keys = || std::iter::once(&get.verdict).chain(&get.votes);
        for key in keys() {
            command.arg(name(key));
        }
        let mut connection = self.connection.clone();
        let answer =
            self.call(self.timeout, command.query_async::<Vec<Option<Vec<u8>>>>(&mut connection)).await;
        let answer = answer.unwrap_or_default().into_iter();
        let mut values = keys().zip(answer).map(|(key, bytes)| self.decoded(key, &bytes?));
        let verdict = values.next().flatten();
        let mut votes: Vec<Option<Value>> = values.collect();
        votes.resize(get.votes.len(), None);
        Lookup { verdict, votes }
    }

    pub(super) async fn put(&self, values: Vec<(Digest, Value)>) {
        if self.writes.fetch_add(1, Ordering::Relaxed) < WRITES_MAX {
            let mut pipeline = pipe();
            for (key, value) in &values {
                pipeline
                    .cmd("SET")
                    .arg(name(key))
                    .arg(value.encode(&self.seal, key))
                    .arg("EX")
                    .arg(self.ttl_s)
                    .ignore();
            }
            let mut connection = self.connection.clone();
            let _failure_is_counted =
                self.call(WRITE_TIMEOUT, pipeline.query_async::<()>(&mut connection)).await;
        } else {
            self.count(CacheError::WriteLimit);
        }
        self.writes.fetch_sub(1, Ordering::Relaxed);
    }

    /// Waits for an answer no longer than `limit`; fails at once while the circuit is open.
    async fn call<T>(&self, limit: Duration, call: impl Future<Output = Result<T, RedisError>>) -> Option<T> {
        if !self.breaker().allows(Instant::now()) {
            self.count(CacheError::Breaker);
            return None;
        }
        let (reason, error) = match timeout(limit, call).await {
            Ok(Ok(answer)) => {
                let was_open = self.breaker().is_open();
                self.breaker().succeeded();
                if was_open {
                    tracing::info!("the cache answers again");
                }
                return Some(answer);
            }
            Ok(Err(error)) if error.is_timeout() => (CacheError::Timeout, error.to_string()),
            Ok(Err(error)) => (CacheError::Refused, error.to_string()),
            Err(_) => (CacheError::Timeout, format!("no answer within {} ms", limit.as_millis())),
        };
        self.count(reason);
        let was_open = self.breaker().is_open();
        self.breaker().failed(Instant::now());
        if !was_open && self.breaker().is_open() {
            tracing::warn!(
                error,
                "the cache failed several times in a row: it is skipped, and tried again once a second"
            );
        }
        None
    }

    fn decoded(&self, key: &Digest, bytes: &[u8]) -> Option<Value> {
        let value = Value::decode(&self.seal, key, bytes);
        if value.is_none() {
            self.count(CacheError::Corrupt);
        }
        value
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        // A breaker is as good after a panic as before it.
        self.breaker.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn count(&self, reason: CacheError) {
        self.metrics.cache_errors.with_label_values(&[reason.name()]).inc();
    }
}

/// Returns the key in Redis: readable, so that `redis-cli --scan --pattern 'concord:*'` finds Concord's keys.
fn name(key: &Digest) -> String {
    format!("concord:{key}")
}
