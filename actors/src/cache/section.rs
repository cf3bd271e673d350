//! `[cache]`: where votes and verdicts are cached, and how long.

use serde::Deserialize;

use crate::diagnostic::{Diagnostic, not_one_of};

/// The section `[cache]` of `ensemble.toml`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CacheSection {
    /// The store: `memory` (of this process) or `redis` (shared, and kept across restarts).
    pub backend: String,
    /// redis only: the address `redis://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`. With a password,
    /// better set by `CONCORD__CACHE__URL` than in the file.
    pub url: String,
    /// The time that a value is kept, in seconds.
    pub ttl_s: u64,
    /// memory only: the most bytes that the values take.
    pub capacity_bytes: u64,
    /// redis only: the time, in milliseconds, after which a lookup counts as a miss.
    pub timeout_ms: u64,
    /// redis only: the environment variable that holds the secret which seals the values. Without it whoever
    /// can write to the server can give any verdict.
    pub secret_env: Option<String>,
}

/// The store that values are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheBackend {
    /// The memory of this process.
    Memory,
    /// A Redis server.
    Redis,
}

const BACKENDS: [&str; 2] = ["memory", "redis"];
/// A year in seconds.
const TTL_S_MAX: u64 = 366 * 24 * 3600;
/// The longest timeout: a request that waits longer for its cache would be faster without.
const TIMEOUT_MS_MAX: u64 = 10_000;

impl Default for CacheSection {
    fn default() -> Self {
        Self {
            backend: "memory".to_owned(),
            url: "redis://127.0.0.1:6379".to_owned(),
            ttl_s: 24 * 3600,
            // About 100,000 verdicts of two models.
            capacity_bytes: 64 << 20,
            // Redis answers within a millisecond; the models that it saves take tens of them.
            timeout_ms: 20,
            secret_env: None,
        }
    }
}

impl CacheSection {
    /// Returns the store that it names.
    pub fn backend(&self) -> CacheBackend {
        if self.backend == "redis" { CacheBackend::Redis } else { CacheBackend::Memory }
    }

    /// Returns the secret that seals the values, where one is configured: [`Self::check`] has found that its
    /// variable holds one.
    pub(super) fn secret(&self) -> Option<Vec<u8>> {
        let secret = std::env::var_os(self.secret_env.as_ref()?)?.into_encoded_bytes();
        (!secret.is_empty()).then_some(secret)
    }

    /// Returns the fields that cannot be used.
    pub fn check(&self) -> Vec<Diagnostic> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, message: String| faults.push(Diagnostic::new(vec![key.into()], message));
        if !BACKENDS.contains(&self.backend.as_str()) {
            fault("backend", not_one_of(&self.backend, "a cache backend", BACKENDS));
        }
        // The address is not repeated: it may hold a password.
        if redis::Client::open(self.url.as_str()).is_err() {
            fault(
                "url",
                "is not the address of a Redis server: must be redis://HOST[:PORT][/DATABASE]".to_owned(),
            );
        }
        if let Some(variable) = &self.secret_env
            && self.secret().is_none()
        {
            let message =
                format!("the variable {variable} holds no secret: must hold one that is hard to guess");
            fault("secret_env", message);
        }
        for (key, value, max) in
            [("ttl_s", self.ttl_s, TTL_S_MAX), ("timeout_ms", self.timeout_ms, TIMEOUT_MS_MAX)]
        {
            if !(1..=max).contains(&value) {
                fault(key, format!("{value} is out of range: must be from 1 to {max}"));
            }
        }
        faults
    }
}
